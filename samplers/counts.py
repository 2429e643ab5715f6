"""How often each slot's history holds each token: the state behind the penalties."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samplers.contract import Admission, Shape


class OutputCounts:
    """counts [slots, V] int32 of generated tokens; `with_prompt` counts prompt tokens as well.

    Allocated on first use: a vocabulary of 150 k over 256 slots is 150 MB nobody may need.
    """

    def __init__(self, shape: Shape, with_prompt: bool = False) -> None:
        self._shape = shape
        self._with_prompt = with_prompt
        self._counts: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        if self._counts is None:
            size = (self._shape.slots, self._shape.vocab)
            self._counts = torch.zeros(size, dtype=torch.int32, device=self._shape.device)
        return self._counts

    def admit(self, slot: int, admission: Admission) -> None:
        history = [*admission.prompt_ids, *admission.output_ids] if self._with_prompt else list(admission.output_ids)
        row = self.counts[slot]
        row.zero_()
        if history:
            ids = torch.tensor(history, device=row.device)
            row.copy_(torch.bincount(ids, minlength=self._shape.vocab).int())

    def accept(self, slots: Tensor, tokens: Tensor) -> None:
        self.counts[slots, tokens] += 1  # slots are distinct

    def snapshot(self, slot: int) -> Any:
        return self.counts[slot].clone()

    def restore(self, slot: int, snapshot: Any) -> None:
        self.counts[slot].copy_(snapshot)

    def fork(self, parent: int, child: int) -> None:
        self.counts[child].copy_(self.counts[parent])

    def free(self, slot: int) -> None:
        """The next `admit` overwrites the row."""
