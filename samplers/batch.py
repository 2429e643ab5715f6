"""Which rows of a call are whose: the stages and draws of a batch, each with its rows and their parameters.

Does not change while the same slots are sampled from, as decoding does step after step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from samplers.memories import Slots
from samplers.parameters import SlotParameters
from samplers.scheduled import Drawing, Scheduled

Owner = TypeVar("Owner")


@dataclass(frozen=True, slots=True)
class Share:
    """The rows of a batch that one stage or draw works on: r of R."""

    rows: Slots  # [r], ascending
    slots: Slots  # [r]
    index: Tensor | None  # [r] the rows, device; None: all of the batch
    device_slots: Tensor  # [r] int64
    params: Mapping[str, Tensor]  # [r] each

    @classmethod
    def among(cls, slots: Slots, rows: Slots, parameters: SlotParameters, device: torch.device) -> Share:
        """slots: [R] of the batch."""
        mine = slots[rows]
        device_slots = torch.from_numpy(mine).to(device)
        index = None if len(rows) == len(slots) else torch.from_numpy(rows).to(device)
        return cls(rows, mine, index, device_slots, parameters.gather(device_slots))

    def of(self, tensor: Tensor) -> Tensor:
        """The share of a tensor [R, ...]; the tensor itself where that is all of it."""
        return tensor if self.index is None else tensor[self.index]

    def without(self, excluded: Collection[int]) -> Share:
        """The share without some rows of the batch."""
        kept = np.array([row not in excluded for row in self.rows.tolist()], bool)
        if kept.all():
            return self
        where = torch.from_numpy(np.flatnonzero(kept)).to(self.device_slots.device)
        index = torch.from_numpy(self.rows[kept]).to(where.device)
        params = {name: values[where] for name, values in self.params.items()}
        return Share(self.rows[kept], self.slots[kept], index, self.device_slots[where], params)


@dataclass(frozen=True, slots=True)
class Batch:
    """In the order in which they run."""

    stages: Sequence[tuple[Scheduled, Share]]
    draws: Sequence[tuple[Drawing, Share]]


def left(shares: Sequence[tuple[Owner, Share]], failures: Collection[int]) -> Iterator[tuple[Owner, Share]]:
    """Shares without the rows that have failed by the time it is their turn; none without any row."""
    for owner, share in shares:
        rest = share.without(failures) if failures else share
        if len(rest.rows):
            yield owner, rest
