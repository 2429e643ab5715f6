"""Which steps look back, by what they say."""

from __future__ import annotations

from typing import get_args

import pytest

from server.schema.analysis import StepsBody
from voting.step_kinds import _PHRASES, KINDS, kind_of


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        ("Tom has 3 apples and buys 4.", "progressive"),
        ("", "progressive"),
        ("His paycheck was wrongly dated, a checkered story.", "progressive"),  # whole words
        ("Let me double-check this: 3 + 4 = 7.", "verification"),
        ("To be  sure,\nadd them again.", "verification"),
        ("Alternatively, count backwards.", "multi_method"),
        ("Let me verify it in another way.", "multi_method"),
        ("Wait, no. That’s wrong: it is 8.", "error_correction"),
        ("Let me check. I made a MISTAKE.", "error_correction"),
    ],
)
def test_kinds(step: str, kind: str) -> None:
    assert kind_of(step) == kind


def test_every_phrase_is_found() -> None:
    for kind, phrases in _PHRASES.items():
        assert {kind_of(f"So {phrase} here") for phrase in phrases} == {kind}


def test_a_request_may_say_each_of_them() -> None:
    (listed, _) = get_args(StepsBody.model_fields["kinds"].annotation)
    assert set(get_args(get_args(listed)[0])) == set(KINDS)
