"""Conditional beam search: the most probable output among those that an event holds for (samplers.md 17.2, whose
scoring is our own; the idea is that of "Making the Most of your Model", arXiv 2408.16241, and "MAP's not dead yet",
arXiv 2311.08817)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from samplers.contract import Param, SamplerError
from samplers.model_facts import ModelFacts
from samplers.programs import event_fields
from samplers.programs.beam import STOP, WIDTH, check_width
from samplers.programs.beam_search import NO_GUIDE, Candidate, Guide, Terms, search
from samplers.programs.branch import End
from samplers.programs.contract import PROGRAMS, BaseProgram, ProgramError, Run, Setting, Task
from samplers.programs.events import Event

_LEAST = 1e-6  # of what a classifier says of a text that goes on: its wrong 0 must not lose an output


@PROGRAMS.register
class ConditionalBeam(BaseProgram):
    """Beam search in which beams are ranked by ln q + beta ln v, with v an estimate of P(event | text so far). Finished
    texts are scored as in beam search, and only those that the event holds for are found.

    `lookahead` says what v is. `live`: 0 where the event is known to be out of reach, which drops the text, else 1.
    `classifier`: the same, with the word of the event's classifier in place of 1; it is asked about the best 2W
    continuations of a step. `none`: 1, so that this is beam search whose texts are filtered when it is over.

    Where nothing found satisfies the event, the request fails with `event_not_reached`; with `relax`, it is answered by
    beam search without the event instead. Every choice says whether the event holds for it.
    """

    name = "conditional_beam"
    params = (
        WIDTH,
        Param("length_penalty", float, 0.0, low=-5, high=5),
        STOP,
        Param("lookahead", str, "live", choices=("live", "classifier", "none")),
        Param("beta", float, 1.0, low=0, high=10),
        Param("relax", bool, False),
    )
    structured = ("event",)
    structured_defaults = MappingProxyType({"event": None})

    def parse(self, field: str, value: Any, path: str, model: ModelFacts) -> dict[str, Any]:
        return event_fields.parse(value, path, model)

    def check(self, values: Mapping[str, Any], setting: Setting) -> None:
        super().check(values, setting)
        check_width(values["beam_width"], setting)
        event = values["event"]
        if event is None:
            raise SamplerError(f"'{self.name}' needs an 'event'", "event")
        event_fields.check(event, setting)
        if values["lookahead"] == "classifier" and "classifier" not in event:
            raise SamplerError("lookahead 'classifier' needs an event with a classifier", "lookahead")

    def run(self, task: Task) -> Run:
        values = task.values
        terms = Terms(values["beam_width"], values["length_penalty"], values["stop"] == "first")
        event = Event(values["event"], task)
        unguided = values["lookahead"] == "none"
        spare = task.root.fork() if values["relax"] and not unguided else None  # to start again from
        every = yield from search(task.root, terms, NO_GUIDE if unguided else _Steered(event, values))
        holds = event.holds([event.text(text.ids, text.end) for text in every])
        found = [text for text, good in zip(every, holds, strict=True) if good]
        reached = bool(found)
        if not reached:
            if not values["relax"]:
                raise ProgramError("event_not_reached", "no output that was found satisfies the event")
            found = every if spare is None else (yield from search(spare, terms))
        for choice, text in enumerate(found[: task.n]):
            task.finish(choice, text.tokens, text.end, **text.details, event=reached)


class _Steered(Guide):
    """Keeps a search to what the event can still hold for, and to the likely part of that."""

    def __init__(self, event: Event, values: Mapping[str, Any]) -> None:
        self._event = event
        self._beta = values["beta"]
        self._foresees = values["lookahead"] == "classifier"

    def allowed(self, texts: Sequence[Sequence[int]], vocab: int) -> Tensor:
        return self._event.allowed(texts, vocab)

    def admits(self, ids: Sequence[int], end: End | None) -> bool:
        return self._event.admits(self._event.text(ids, end))

    def weigh(self, candidates: Sequence[Candidate]) -> list[float]:
        bonuses = [0.0] * len(candidates)
        asked = [i for i, one in enumerate(candidates) if one.end is not None or self._foresees]
        texts = [self._event.text(candidates[i].ids, candidates[i].end) for i in asked]
        for i, text, p in zip(asked, texts, self._event.probabilities(texts), strict=True):
            if text.end is None:
                bonuses[i] = self._beta * math.log(max(p, _LEAST))
            elif p < self._event.threshold:
                bonuses[i] = -math.inf
        return bonuses
