"""Beam search (samplers.md 17.1) and diverse beam search (Vijayakumar et al., arXiv 1610.02424)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samplers.contract import Param, SamplerError
from samplers.programs.beam_search import Terms, search
from samplers.programs.contract import PROGRAMS, BaseProgram, Run, Setting, Task

WIDTH = Param("beam_width", int, 4, low=1, high=64)
STOP = Param("stop", str, "bound", choices=("bound", "first"))


@PROGRAMS.register
class Beam(BaseProgram):
    """Every step looks at the 2W best continuations of the W beams. Those that end the text, by an ending id or a stop
    string, are texts found if they are among the first W; the first W others go on, or are found where they reach the
    length limit. Ties go to the beam of higher rank, then to the more probable token, then to the lower id.

    A text's score is ln q / length ** length_penalty, with q the rows as the request's stages leave them and the ending
    id counted. `bound` stops when W texts are found and no beam can come to a better score than the worst of the best
    W; `first` as soon as W are found. Choices come when all is done, best first; fewer than n where there are fewer.

    With `groups` G, every group has W / G beams and finds its own W / G texts. In each step the groups choose one after
    the other, and ln q of a token counts `diversity` less for every beam of an earlier group that has just taken it;
    scores are without. G = 1 is plain beam search; with diversity 0 all groups find the same.
    """

    name = "beam"
    params = (
        WIDTH,
        Param("length_penalty", float, 1.0, low=-5, high=5),
        STOP,
        Param("groups", int, 1, low=1, high=64),
        Param("diversity", float, 0.5, low=0, high=100),  # nats
    )

    def check(self, values: Mapping[str, Any], setting: Setting) -> None:
        super().check(values, setting)
        check_width(values["beam_width"], setting)
        if values["beam_width"] % values["groups"]:
            raise SamplerError(f"'groups' must divide 'beam_width' ({values['beam_width']})", "groups")

    def run(self, task: Task) -> Run:
        values = task.values
        first = values["stop"] == "first"
        terms = Terms(values["beam_width"], values["length_penalty"], first, values["groups"], values["diversity"])
        found = yield from search(task.root, terms)
        for choice, text in enumerate(found[: task.n]):
            task.finish(choice, text.tokens, text.end, **text.details)


def check_width(width: int, setting: Setting) -> None:
    """Raises SamplerError where there are more choices than beams."""
    if setting.n > width:
        raise SamplerError(f"'beam_width' must be at least n ({setting.n}), got {width}", "beam_width")
