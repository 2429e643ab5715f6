"""A few token ids per slot, each with a number to add to its logit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samplers.contract import Shape


class TokenTable:
    """ids [slots, W] int64 and addends [slots, W] fp32; W is the longest list so far.

    Shorter lists repeat their first entry, so that writing all W results of a row writes equal numbers twice.
    """

    def __init__(self, shape: Shape) -> None:
        self._ids = torch.zeros(shape.slots, 1, dtype=torch.int64, device=shape.device)
        self._addends = torch.zeros(shape.slots, 1, device=shape.device)

    def write(self, slot: int, addends: Mapping[int, float]) -> None:
        """Fully overwrite a slot; an empty mapping adds nothing."""
        entries = list(addends.items()) or [(0, 0.0)]
        missing = len(entries) - self._ids.shape[1]
        if missing > 0:
            self._ids = torch.cat([self._ids, self._ids[:, :1].expand(-1, missing)], 1)
            self._addends = torch.cat([self._addends, self._addends[:, :1].expand(-1, missing)], 1)
        entries += entries[:1] * -missing
        self._ids[slot] = torch.tensor([token for token, _ in entries], device=self._ids.device)
        self._addends[slot] = torch.tensor([addend for _, addend in entries], device=self._ids.device)

    def copy(self, parent: int, child: int) -> None:
        self._ids[child], self._addends[child] = self._ids[parent], self._addends[parent]

    def add(self, logits: Tensor, slots: Tensor, where: Tensor | None = None) -> Tensor:
        """logits [R, V] plus each row's addends; `where` [R] bool leaves out the other rows."""
        ids = self._ids[slots]
        before = logits.gather(1, ids)
        after = before + self._addends[slots]
        return logits.scatter(1, ids, after if where is None else torch.where(where.unsqueeze(1), after, before))

    def any(self, chosen: Tensor, slots: Tensor) -> Tensor:
        """Whether a token of the row's list, with an addend other than zero, is among the chosen. chosen: [R, V] bool
        -> [R] bool."""
        return (chosen.gather(1, self._ids[slots]) & (self._addends[slots] != 0)).any(1)
