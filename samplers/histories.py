"""The tokens of each slot, and for every position how far what comes before it equals the tokens' present end.

Held on the host: repetitions are sparse, and finding them is integer work that all rows share.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from samplers.contract import Shape

Ids = npt.NDArray[np.int64]
Columns = TypeVar("Columns", bound=npt.NDArray[Any])


class Histories:
    """ids [slots, W] int32, of which the first `length` of each slot hold its tokens. W grows by doubling."""

    def __init__(self, shape: Shape) -> None:
        self.ids = np.empty((shape.slots, 0), np.int32)
        self.length = np.zeros(shape.slots, np.int64)

    def write(self, slot: int, ids: Ids) -> None:
        """Fully overwrite a slot."""
        self.reserve(len(ids) + 1)
        self.ids[slot, : len(ids)] = ids
        self.length[slot] = len(ids)

    def append(self, slots: Ids, tokens: Ids) -> None:
        """One token for each of these distinct slots. slots, tokens: [R]."""
        self.reserve(self.longest(slots) + 1)
        self.ids[slots, self.length[slots]] = tokens
        self.length[slots] += 1

    def reserve(self, width: int) -> None:
        """Make room for histories of this length."""
        self.ids = widened(self.ids, width)

    def longest(self, slots: Ids) -> int:
        return int(self.length[slots].max(initial=0))

    def snapshot(self, slot: int) -> Any:
        return self.length[slot]  # what stands before it never changes

    def restore(self, slot: int, snapshot: Any) -> None:
        self.length[slot] = snapshot

    def fork(self, parent: int, child: int) -> None:
        self.ids[child], self.length[child] = self.ids[parent], self.length[parent]

    def free(self, slot: int) -> None:
        """The next `admit` overwrites the slot."""


class Repeats(Histories):
    """Histories with `before` [slots, W] int32: how many tokens in front of a position equal the last ones.

    A negative id equals nothing, itself included. With h of length n and h[n-k:] == h[j-k:j] for k = before[j]:
    appending t makes before[j + 1] = before[j] + 1 where h[j] == t, and 0 elsewhere. Occurrences may overlap.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.before = np.empty((shape.slots, 0), np.int32)

    def write(self, slot: int, ids: Ids) -> None:
        super().write(slot, ids)
        self.before[slot, : len(ids)] = common_endings(ids)

    def append(self, slots: Ids, tokens: Ids) -> None:
        longest = self.longest(slots)
        self.reserve(longest + 1)
        same = (self.ids[slots, :longest] == tokens[:, None]) & (tokens >= 0)[:, None]
        # entries behind a shorter slot's length are nonsense, and nothing reads them before they are written
        self.before[slots, 1 : longest + 1] = (self.before[slots, :longest] + 1) * same
        self.before[slots, 0] = 0
        super().append(slots, tokens)

    def reserve(self, width: int) -> None:
        super().reserve(width)
        self.before = widened(self.before, width)

    def occurrences(self, slots: Ids, least: Ids) -> tuple[Ids, Ids]:
        """(row, position) pairs, ascending, of everything at least `least` tokens before which equal the last ones.
        slots, least: [R]."""
        longest = self.longest(slots)
        found = self.before[slots, :longest] >= least[:, None]
        found &= np.arange(longest) < self.length[slots, None]
        rows, positions = np.nonzero(found)
        return rows, positions

    def snapshot(self, slot: int) -> Any:
        length = self.length[slot]
        return length, self.before[slot, :length].copy()

    def restore(self, slot: int, snapshot: Any) -> None:
        length, before = snapshot
        self.length[slot] = length
        self.before[slot, :length] = before

    def fork(self, parent: int, child: int) -> None:
        super().fork(parent, child)
        self.before[child] = self.before[parent]


def widened(columns: Columns, width: int) -> Columns:
    """The array [slots, W] with W at least `width`; new columns mean nothing."""
    if columns.shape[1] >= width:
        return columns
    wider = np.empty((len(columns), max(width, 2 * columns.shape[1], 64)), columns.dtype)
    wider[:, : columns.shape[1]] = columns
    return wider  # type: ignore[return-value]


def common_endings(ids: Ids) -> Ids:
    """[n]: how many tokens in front of position j equal the last ones; the Z-function of the reversed tokens, O(n)."""
    count = len(ids)
    single = np.where(ids < 0, -2 - np.arange(count), ids)  # a negative id equals nothing
    tokens: list[int] = single[::-1].tolist()
    matched = [0] * (count + 1)
    left = right = 0
    for i in range(1, count):
        size = min(right - i, matched[i - left]) if i < right else 0
        while i + size < count and tokens[size] == tokens[i + size]:
            size += 1
        matched[i] = size
        if i + size > right:
            left, right = i, i + size
    return np.array(matched[count:0:-1], np.int64)


def host(tensor: Tensor) -> npt.NDArray[Any]:
    """The tensor's values in numpy."""
    return tensor.cpu().numpy()
