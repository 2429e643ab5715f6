"""What shapes the rows of a drafter: stages that remember nothing, at the temperature of drafts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.speculation import _draft_chain
from samplers.chain import resolve
from spec_decode.request import SourceUse, SpecRequest

FORGETFUL = frozenset({"temperature", "top_p", "logit_bias", "iid", "gumbel"})
ASKED = SpecRequest((SourceUse("draft_model"),), "block")


@pytest.mark.parametrize(
    ("fields", "draft_temperature", "stages", "greedy"),
    [
        ({"temperature": 0.8, "top_p": 0.9}, None, {"temperature": 0.8, "top_p": 0.9}, False),
        ({"temperature": 0.8, "top_p": 0.9}, 0.3, {"temperature": 0.3, "top_p": 0.9}, False),
        ({"temperature": 1.0, "top_p": 0.9}, 0.3, {"temperature": 0.3, "top_p": 0.9}, False),
        ({"temperature": 0.0}, 0.3, {"temperature": 0.3}, False),
        ({"temperature": 0.8, "frequency_penalty": 1.0}, None, {"temperature": 0.8}, False),
        ({"temperature": 0.0}, None, {}, True),
        ({"temperature": 0.8, "top_p": 0.9}, 0.0, {"top_p": 0.9}, True),  # a division by 0 would leave no best token
        ({"temperature": 1.0}, 0.0, {}, True),
    ],
)
def test_the_chain_of_drafts(
    fields: dict[str, Any], draft_temperature: float | None, stages: dict[str, float], greedy: bool
) -> None:
    found = _draft_chain(resolve(fields, 64), replace(ASKED, draft_temperature=draft_temperature), FORGETFUL)
    assert {item.name: item.values[item.name] for item in found.stages} == stages and found.greedy is greedy


def test_a_draw_that_remembers_is_not_for_drafts() -> None:
    assert _draft_chain(resolve({"draw": "arithmetic"}, 64), ASKED, FORGETFUL).draw.name == "iid"
    assert _draft_chain(resolve({"draw": "gumbel"}, 64), ASKED, FORGETFUL).draw.name == "gumbel"
