"""Random rows of logits that hold what samplers get wrong, and histories that repeat themselves."""

from __future__ import annotations

import torch
from torch import Tensor

_GRID = 1024.0  # rows are multiples of 1/1024, so that adding a small whole number to them is exact
KINDS = 9


def random_rows(vocab: int, count: int, generator: torch.Generator) -> Tensor:
    """[count, V] fp32: ordinary rows, masked ones, ties, one-hot, uniform, peaked, wide; all kinds from `KINDS` on."""
    rows = torch.randn(count, vocab, generator=generator) * 3
    masked = torch.rand(count, vocab, generator=generator) < 0.4
    lucky = torch.randint(vocab, (count,), generator=generator)  # never masked
    for at in range(count):
        row, kind = rows[at], at % KINDS
        if kind == 2:  # ties
            row.copy_((row / 2).round())
        elif kind == 3:  # one-hot by masks
            masked[at] = True
        elif kind == 4:  # uniform
            row.fill_(row[0].item())
        elif kind == 5:  # uniform over some
            row.zero_()
        elif kind == 6:  # one-hot by numbers
            row.sub_(30)
            row[lucky[at]] = 30
        elif kind == 7:  # few values, many of them ties, some masked
            row.copy_((row / 3).round())
        elif kind == 8:  # wide
            row.mul_(8)
        if kind in (0, 2, 4, 6, 8):
            masked[at] = False
        masked[at, lucky[at]] = False
    return ((rows * _GRID).round() / _GRID).masked_fill(masked, -torch.inf)


def history(vocab: int, length: int, generator: torch.Generator) -> list[int]:
    """Token ids, few different ones, so that they repeat."""
    few = torch.randint(vocab, (3,), generator=generator)
    return few[torch.randint(3, (length,), generator=generator)].tolist()
