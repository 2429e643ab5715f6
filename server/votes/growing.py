"""One choice on its way from text events to a sample. Keeps of its log-probabilities only what its vote reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from server.choice import ChoiceEvent
from voting.contract import Sample
from voting.token_statistics import confidences, entropies

FAILED = "failed"  # why a choice abstains that the engine could not finish


class Growing:
    """Is given every event of one choice. Lives in the event loop."""

    def __init__(self, index: int, needs: frozenset[str], top: int | None, *, whole: bool) -> None:
        """needs, top: of the vote. whole: it will be shown as one event, and once it has ended it is kept as one."""
        self.index = index
        self._whole = whole
        self.tokens = 0
        self._needs = needs
        self._top = top
        self._events: list[ChoiceEvent] = []
        self._entropies: list[float] = []
        self._confidences: list[float] = []

    def add(self, event: ChoiceEvent) -> None:
        if self._top is not None and event.scores:
            rows = [[logprob for _, logprob in score.top[: self._top]] for score in event.scores]
            if "entropies" in self._needs:
                self._entropies += entropies(rows).tolist()
            if "confidences" in self._needs:
                self._confidences += confidences(rows).tolist()
        self.tokens += len(event.token_ids)
        self._events.append(replace(event, scores=[]))

    def shown(self, number: int) -> list[ChoiceEvent]:
        """Its events as those of choice `number` of the response. It has ended."""
        return [replace(event, choice=number) for event in self._events]

    def sample(self) -> Sample:
        """What the finished choice brings into the vote, its answer not yet looked for."""
        event = self._merged()
        if self._whole:
            self._events = [event]
        end = event.end
        assert end is not None
        total = None if end.failure is not None else end.cumulative_logprob
        return Sample(
            self.index,
            event.text,
            token_ids=tuple(event.token_ids),
            n_tokens=self.tokens,
            mean_logprob=total / self.tokens if self.tokens and total is not None else None,
            finish_reason=end.reason,
            abstain_reason=FAILED if end.failure is not None else end.details.get("ended_early"),
            weight=_weight(end.details),
            entropies=self._known("entropies", self._entropies),
            confidences=self._known("confidences", self._confidences),
        )

    def _merged(self) -> ChoiceEvent:
        merged = ChoiceEvent(self.index)
        for event in self._events:
            merged.absorb(event)
        return merged

    def _known(self, need: str, values: Sequence[float]) -> tuple[float, ...] | None:
        return tuple(values) if need in self._needs else None


def _weight(details: Mapping[str, object]) -> float:
    """What a sampler that weighs its samples says of this one."""
    weight = details.get("tree_weight", 1.0)
    assert isinstance(weight, (int, float))
    return float(weight)
