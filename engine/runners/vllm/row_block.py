"""Rows of logits on their way from vLLM's processes to the runner: memory that both have mapped, on one machine.

With every row lies a ticket, the number of the question it answers. A row that nobody waits for any more may still be
written when its slot is another one's already; by their tickets they are told apart.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_NONE = 0  # no row's ticket
_TICKET, _DRAWN = 0, 1


class Place(NamedTuple):
    """Where one row is to be written."""

    slot: int
    ticket: int  # above 0


class LogitRow(NamedTuple):
    """What the model said behind a branch."""

    raw: Tensor  # [V] fp32, before the stages
    shaped: Tensor  # [V] fp32, after them
    drawn: int  # the token that the chain picked, -1: none


class RowBlock:
    """Slots for so many rows of `vocab` ids, and what is known of each."""

    def __init__(self, file: int, slots: int, vocab: int) -> None:
        """Maps the file of this descriptor, which may be closed then."""
        memory = mmap.mmap(file, block_size(slots, vocab))
        self._heads = np.frombuffer(memory, np.int64, 2 * slots).reshape(slots, 2)
        rows = np.frombuffer(memory, np.float32, slots * 2 * vocab, offset=self._heads.nbytes)
        self._rows = rows.reshape(slots, 2, vocab)

    def write(self, place: Place, raw: Tensor, shaped: Tensor, drawn: int) -> None:
        """raw, shaped: [V] fp32 on the CPU."""
        head, rows = self._heads[place.slot], self._rows[place.slot]
        head[_TICKET] = _NONE
        rows[0], rows[1] = raw.numpy(), shaped.numpy()
        head[_DRAWN] = drawn
        head[_TICKET] = place.ticket

    def read(self, place: Place) -> LogitRow | None:
        """A copy of the row. None: another one lies there, or is just being written."""
        head = self._heads[place.slot]
        if head[_TICKET] != place.ticket:
            return None
        rows, drawn = torch.from_numpy(self._rows[place.slot].copy()), int(head[_DRAWN])
        return LogitRow(rows[0], rows[1], drawn) if head[_TICKET] == place.ticket else None


def opened(path: str, slots: int, vocab: int) -> RowBlock:
    """The block that another process has made. Raises OSError."""
    file = os.open(path, os.O_RDWR)
    try:
        return RowBlock(file, slots, vocab)
    finally:
        os.close(file)


def block_size(slots: int, vocab: int) -> int:
    """Bytes of the file behind a block: heads, then rows."""
    return slots * (2 * 8 + 2 * 4 * vocab)
