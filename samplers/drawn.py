"""How probable a stage found the token that was then drawn: what feedback needs when a token is committed.

`accept` brings no row, so the rows of the last calls are kept until their tokens are in. Speculation shapes rows for
drafts, goes back and then commits tokens without another call; a snapshot therefore keeps the rows since it was made,
and must not be kept for longer than a step. A row is found by the tokens before it, so those of drafts that were not
taken are never mistaken for others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samplers.histories import Ids, host

Scores = npt.NDArray[np.float64]
Score = Callable[[Tensor, Tensor], Tensor]  # (rows [k], tokens [k], int64, device) -> ln p [k]
_FACTOR, _STEP = np.uint64(6364136223846793005), np.uint64(1442695040888963407)  # Knuth's generator, mod 2^64


@dataclass(eq=False)
class _Call:
    """The rows of one call."""

    serial: int
    score: Score
    row: Ids  # [slots]; -1: not in the call
    prefix: npt.NDArray[np.uint64]  # [slots] what the tokens before the row hash to
    waiting: npt.NDArray[np.bool_]  # [slots] whose token is still to come


class _Link:
    """A place in the chain of calls. Only snapshots hold older ones, so what no snapshot can need is gone."""

    def __init__(self) -> None:
        self.call: _Call | None = None
        self.next: _Link | None = None


@dataclass(frozen=True)
class _Mark:
    """A snapshot: the tokens, the rows that waited for one, and the calls from here on."""

    prefix: np.uint64
    waiting: tuple[_Call, ...]
    link: _Link


class DrawnScores:
    """ln p of each slot's next token, by whatever rows its stage last noted."""

    def __init__(self, slots: int) -> None:
        self._prefix = np.zeros(slots, np.uint64)
        self._serial = 0
        self._recent: list[_Call] = []  # some slot's token is still to come
        self._end = _Link()
        self._replayed: dict[int, _Call] = {}  # what restored slots may need
        self._restored = np.zeros(slots, bool)

    def admit(self, slot: int) -> None:
        self.free(slot)
        self._serial += 1
        self._prefix[slot] = np.uint64(self._serial)  # never that of a former owner

    def note(self, slots: Ids, score: Score) -> None:
        """Row i of `score`, which must own what it needs, belongs to slots[i]. Of equal slots the last counts."""
        self._settle(slots)
        if self._restored[slots].any():
            self._restored[slots] = False
            if not self._restored.any():
                self._replayed.clear()
        row = np.full(len(self._prefix), -1)
        row[slots] = np.arange(len(slots))
        self._serial += 1
        call = _Call(self._serial, score, row, self._prefix.copy(), row >= 0)
        self._recent.append(call)
        self._end.call, self._end.next = call, _Link()
        self._end = self._end.next

    def take(self, slots: Ids, tokens: Tensor) -> Scores:
        """[R] ln p of the committed tokens, -inf where the row left them nothing; NaN where no row is known.
        slots: [R] distinct; tokens: [R] int64."""
        scores = np.full(len(slots), np.nan)
        missing = np.ones(len(slots), bool)
        for call in (*self._recent, *(self._replayed.values() if self._restored[slots].any() else ())):
            found = np.flatnonzero(missing & (call.row[slots] >= 0) & (call.prefix[slots] == self._prefix[slots]))
            if len(found):
                rows = torch.from_numpy(call.row[slots[found]]).to(tokens.device)
                chosen = tokens[torch.from_numpy(found).to(tokens.device)]
                scores[found] = host(call.score(rows, chosen).double())
                missing[found] = False
        self._settle(slots)
        self._prefix[slots] = self._prefix[slots] * _FACTOR + host(tokens).astype(np.uint64) + _STEP
        return scores

    def snapshot(self, slot: int) -> Any:
        return _Mark(self._prefix[slot], tuple(call for call in self._recent if call.waiting[slot]), self._end)

    def restore(self, slot: int, snapshot: Any) -> None:
        assert isinstance(snapshot, _Mark)
        self._settle(np.array([slot]))
        self._prefix[slot] = snapshot.prefix
        self._restored[slot] = True
        self._replayed |= {call.serial: call for call in snapshot.waiting}
        link: _Link | None = snapshot.link
        while link is not None and link.call is not None:
            self._replayed[link.call.serial] = link.call
            link = link.next

    def fork(self, parent: int, child: int) -> None:
        self.free(child)
        self._prefix[child] = self._prefix[parent]
        self._restored[child] = self._restored[parent]
        for call in (*self._recent, *self._replayed.values()):
            for array in (call.row, call.prefix, call.waiting):
                array[child] = array[parent]

    def free(self, slot: int) -> None:
        self._settle(np.array([slot]))
        self._restored[slot] = False
        if not self._restored.any():
            self._replayed.clear()

    def _settle(self, slots: Ids) -> None:
        """Nothing more to come for these slots' rows; calls that wait for nobody are let go."""
        for call in self._recent:
            call.waiting[slots] = False
        self._recent = [call for call in self._recent if call.waiting.any()]
