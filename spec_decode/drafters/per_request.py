"""A drafter of requests that have nothing in common: one object for each, kept under its slot.

Texts are read when drafts are first asked for: most of the work is spared where that never happens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from samplers.rng import Noise, Stream
from spec_decode.contract import DraftAdmission, DraftPlan, DraftTree


class RequestDrafter(Protocol):
    """Drafts of one request, without noise."""

    remembers: bool  # `keep` does something

    def commit(self, tokens: Sequence[int]) -> None: ...

    def propose(self, plan: DraftPlan) -> DraftTree: ...

    def copy(self) -> Self: ...

    def keep(self) -> None:
        """The output is finished, and may be remembered."""
        ...


class PerRequest:
    """A `Drafter`; `start` makes the object of a request, which is then told the tokens so far."""

    def __init__(self, start: Callable[[DraftAdmission], RequestDrafter]) -> None:
        self._start = start
        self._slots: dict[int, _Text] = {}

    def admit(self, slot: int, admission: DraftAdmission) -> None:
        self._slots[slot] = _Text(self._start(admission), list(admission.tokens))

    def commit(self, slot: int, tokens: Sequence[int]) -> None:
        self._slots[slot].unread += tokens

    def propose(self, slots: Sequence[int], plans: Sequence[DraftPlan], noise: Noise) -> list[DraftTree]:
        return [self._slots[slot].read().propose(plan) for slot, plan in zip(slots, plans, strict=True)]

    def fork(self, parent: int, child: int, stream: Stream) -> None:
        self._slots[child] = self._slots[parent].fork()

    def free(self, slot: int, keep: bool = False) -> None:
        text = self._slots.pop(slot)
        if keep and text.drafter.remembers:
            text.read().keep()


@dataclass
class _Text:
    """What a request's drafter has been told, and what it is to be told before it is asked."""

    drafter: RequestDrafter
    unread: list[int] = field(default_factory=list)
    stem: _Text | None = None  # whose drafter is the one above, and is copied: what several forks have in common

    def read(self) -> RequestDrafter:
        if self.stem is not None:
            self.drafter, self.stem = self.stem.read().copy(), None
        if self.unread:
            self.drafter.commit(self.unread)
            self.unread = []
        return self.drafter

    def fork(self) -> _Text:
        """A second text with the same beginning, which either of them reads for both."""
        if self.stem is None or self.unread:
            self.stem, self.unread = _Text(self.drafter, self.unread, self.stem), []
        return _Text(self.drafter, stem=self.stem)
