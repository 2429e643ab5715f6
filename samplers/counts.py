"""What each slot's history holds: the states behind the penalties."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers.contract import Admission, Shape
from samplers.histories import Histories, Ids, host
from samplers.slot_table import SlotTable


class OutputCounts(SlotTable):
    """table [slots, V] int32: how often each token was generated."""

    dtype = torch.int32

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self._one = torch.ones((), dtype=self.dtype, device=shape.device)

    def admit(self, slot: int, admission: Admission) -> None:
        row = self.table[slot]
        row.zero_()
        if admission.output_ids:
            ids = torch.tensor(admission.output_ids, device=row.device)
            row.copy_(torch.bincount(ids, minlength=self._shape.vocab).int())

    def accept(self, slots: Tensor, tokens: Tensor) -> None:
        self.table.index_put_((slots, tokens), self._one, accumulate=True)


class Seen(SlotTable):
    """table [slots, V] bool: which tokens occur in the scope: prompt and output or the output, or the last of them."""

    dtype = torch.bool

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self._yes = torch.ones((), dtype=self.dtype, device=shape.device)
        self._last = np.zeros(shape.slots, np.int64)  # how many tokens count; 0: all, and none are kept
        self._windows = False  # whether any slot has such a limit
        self._histories = Histories(shape)

    def admit(self, slot: int, admission: Admission) -> None:
        last = admission.values["repetition_last_n"]
        ids = [*admission.output_ids]
        if admission.values["repetition_scope"] == "all":
            ids = [*admission.prompt_ids, *ids]
        ids = ids[-last:] if last else ids
        row = self.table[slot]
        row.zero_()
        row[torch.tensor(ids, dtype=torch.int64)] = True
        self._limit(slot, last)
        self._histories.write(slot, np.array(ids, np.int64) if last else np.zeros(0, np.int64))

    def accept(self, slots: Tensor, tokens: Tensor) -> None:
        self.table.index_put_((slots, tokens), self._yes)
        if self._windows:
            mine = host(slots)
            limited = np.flatnonzero(self._last[mine])
            self._forget(mine[limited], host(tokens)[limited])

    def snapshot(self, slot: int) -> Any:
        return super().snapshot(slot), self._histories.snapshot(slot)

    def restore(self, slot: int, snapshot: Any) -> None:
        row, length = snapshot
        super().restore(slot, row)
        self._histories.restore(slot, length)

    def fork(self, parent: int, child: int) -> None:
        super().fork(parent, child)
        self._histories.fork(parent, child)
        self._limit(child, self._last[parent])

    def free(self, slot: int) -> None:
        self._limit(slot, 0)

    def _limit(self, slot: int, last: int) -> None:
        self._last[slot] = last
        self._windows = bool(self._last.any())

    def _forget(self, slots: Ids, tokens: Ids) -> None:
        """Append, and take back what has left the window and is not in it a second time. slots, tokens: [R]."""
        self._histories.append(slots, tokens)
        gone = self._histories.length[slots] - self._last[slots] - 1  # [R] position of the token that has left
        slots, gone = slots[gone >= 0], gone[gone >= 0]
        if not len(slots):
            return
        left = self._histories.ids[slots, gone].astype(np.int64)
        window = np.arange(1, int(self._last[slots].max()) + 1)
        places = np.where(window <= self._last[slots, None], gone[:, None] + window, gone[:, None] + 1)
        remains = (self._histories.ids[slots[:, None], places] == left[:, None]).any(1)
        where = (torch.from_numpy(array).to(self.table.device) for array in (slots, left))
        self.table[tuple(where)] = torch.from_numpy(remains).to(self.table.device)
