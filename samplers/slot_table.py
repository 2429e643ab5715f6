"""A table with one row of the vocabulary's size per slot: what several states keep.

Allocated on first use: 150 k ids over 256 slots are 150 MB of counts that nobody may need.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from samplers.contract import Shape


class SlotTable:
    """table [slots, V] of `dtype`. `admit` and `accept` are left to those who know what is in it."""

    dtype: ClassVar[torch.dtype]

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._table: Tensor | None = None

    @property
    def table(self) -> Tensor:
        if self._table is None:
            size = (self._shape.slots, self._shape.vocab)
            self._table = torch.zeros(size, dtype=self.dtype, device=self._shape.device)
        return self._table

    def snapshot(self, slot: int) -> Any:
        return self.table[slot].clone()

    def restore(self, slot: int, snapshot: Any) -> None:
        self.table[slot].copy_(snapshot)

    def fork(self, parent: int, child: int) -> None:
        self.table[child].copy_(self.table[parent])

    def free(self, slot: int) -> None:
        """The next `admit` overwrites the row."""
