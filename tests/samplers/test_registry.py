"""Names and parameters belong to one sampler each, and what is no sampler is refused before anybody can ask for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from samplers.contract import Param, SamplerError
from samplers.registry import DRAWS, STAGES, SamplerRegistry
from samplers.stage import BaseDraw, BaseStage
from tests.documented import lay_out


class Stage(BaseStage):
    name, order = "mine", 12.9

    def shape(self, logits: Any, params: Any, rows: Any, state: Any) -> Any:
        return logits


class Draw(BaseDraw):
    name = "top_p"

    def pick(self, logits: Any, params: Any, rows: Any, state: Any) -> Any:
        return logits.argmax(1)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"name": "top_p"}, "'top_p': the name is taken by samplers.top_p.TopP"),
        ({"name": "gumbel"}, "'gumbel': the name is taken by samplers.gumbel.Gumbel"),
        ({"name": None}, "has no name"),
        ({"params": (Param("min_p", float, 0.0),)}, "parameter 'min_p' is taken by samplers.min_p.MinP"),
        ({"structured": ("logit_bias",)}, "parameter 'logit_bias' is taken by"),
        ({"params": (Param("draw", float, 0.0),)}, "no parameter can be called 'draw'"),
        ({"params": ("strength",)}, "params must be a tuple of Param"),
        ({"order": "last"}, "order must be a number"),
        ({"shape": None}, "lacks shape"),
    ],
)
def test_what_cannot_be_registered(attributes: dict[str, Any], message: str) -> None:
    known = [stage.name for stage in STAGES]
    with pytest.raises(ValueError, match=message):
        STAGES.register(type("Other", (Stage,), attributes))
    assert [stage.name for stage in STAGES] == known


def test_draws_and_stages_share_their_names() -> None:
    with pytest.raises(ValueError, match=r"draw 'top_p': the name is taken by samplers\.top_p\.TopP"):
        DRAWS.register(Draw)


SOURCE = """
from samplers.stage import BaseStage
from tests.samplers.test_registry import HERE

{decorator}
class Stage(BaseStage):
    name, order = "{name}", 12.9
    def shape(self, logits, params, rows, state):
        return logits
{rest}
"""
HERE: SamplerRegistry[Any] = SamplerRegistry("sampler stage", "drafthouse.tests", ("shape",))


def test_entry_points_with_and_without_the_decorator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = {
        "one_plain": {"name": "of_plain", "decorator": "", "rest": ""},
        "one_decorated": {"name": "of_decorated", "decorator": "@HERE.register", "rest": ""},
        "one_broken": {"name": "of_broken", "decorator": "@HERE.register", "rest": "raise OSError('no disk')"},
    }
    for module, parts in modules.items():
        (tmp_path / f"{module}.py").write_text(SOURCE.format(**parts))
        lay_out(tmp_path, module, {"drafthouse.tests": {module: f"{module}:Stage"}})
    try:
        assert {item.name for item in HERE} == {"of_plain", "of_decorated"}  # nothing is left of the broken one
        assert (
            "'one_broken' (one_broken:Stage) of package 'one_broken' is not available: OSError: no disk" in caplog.text
        )
        with pytest.raises(SamplerError, match="known: of_decorated, of_plain"):
            HERE.get("of_broken")
    finally:
        for module in modules:
            sys.modules.pop(module, None)
