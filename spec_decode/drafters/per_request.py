"""A drafter of requests that have nothing in common: one object for each, kept under its slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, Self

from samplers.rng import Noise, Stream
from spec_decode.contract import DraftAdmission, DraftPlan, DraftTree


class RequestDrafter(Protocol):
    """Drafts of one request, without noise."""

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
        self._slots: dict[int, RequestDrafter] = {}

    def admit(self, slot: int, admission: DraftAdmission) -> None:
        self._slots[slot] = self._start(admission)
        self._slots[slot].commit(admission.tokens)

    def commit(self, slot: int, tokens: Sequence[int]) -> None:
        self._slots[slot].commit(tokens)

    def propose(self, slots: Sequence[int], plans: Sequence[DraftPlan], noise: Noise) -> list[DraftTree]:
        return [self._slots[slot].propose(plan) for slot, plan in zip(slots, plans, strict=True)]

    def fork(self, parent: int, child: int, stream: Stream) -> None:
        self._slots[child] = self._slots[parent].copy()

    def free(self, slot: int, keep: bool = False) -> None:
        drafter = self._slots.pop(slot)
        if keep:
            drafter.keep()
