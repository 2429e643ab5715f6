"""What each slot's history holds: the states behind the penalties.

Tables are allocated on first use: 150 k ids over 256 slots are 150 MB of counts that nobody may need.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samplers.contract import Admission, Shape


class _Table:
    """table [slots, V], one row per slot."""

    dtype: torch.dtype

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


class OutputCounts(_Table):
    """table [slots, V] int32: how often each token was generated."""

    dtype = torch.int32

    def admit(self, slot: int, admission: Admission) -> None:
        row = self.table[slot]
        row.zero_()
        if admission.output_ids:
            ids = torch.tensor(admission.output_ids, device=row.device)
            row.copy_(torch.bincount(ids, minlength=self._shape.vocab).int())

    def accept(self, slots: Tensor, tokens: Tensor) -> None:
        self.table[slots, tokens] += 1  # slots are distinct


class Seen(_Table):
    """table [slots, V] bool: which tokens occur in prompt or output."""

    dtype = torch.bool

    def admit(self, slot: int, admission: Admission) -> None:
        row = self.table[slot]
        row.zero_()
        row[torch.tensor([*admission.prompt_ids, *admission.output_ids], dtype=torch.int64)] = True

    def accept(self, slots: Tensor, tokens: Tensor) -> None:
        self.table[slots, tokens] = True
