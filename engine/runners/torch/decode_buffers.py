"""The inputs of decode steps at addresses that never change, and the sizes of steps worth keeping a graph for.

Knows nothing about graphs: it lays out rows, and a test can run the model over what it has laid out. Padding rows
compute token 0 at position 0, write to slot 0 and read only that: the dummy page belongs to nobody.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from engine.runners.torch.attention_cuda import Plan
from engine.runners.torch.block_table import block_table
from engine.runners.torch.step import Step

_FREE_PADDING = 8  # rows; a step of so few costs about what one row costs


def sizes_up_to(most: int) -> list[int]:
    """1, 2, 4, 8, from there on also the halfway points (12, 16, 24, 32, ...), and `most` itself."""
    sizes, power = [], 1
    while power < most:
        sizes.append(power)
        if power >= 8 and power * 3 // 2 < most:
            sizes.append(power * 3 // 2)
        power *= 2
    return [*sizes, most]


def size_for(rows: int, sizes: Iterable[int]) -> int | None:
    """The smallest of `sizes` that holds `rows` without more padding than rows."""
    size = min((size for size in sizes if size >= rows), default=None)
    return None if size is None or size > max(_FREE_PADDING, 2 * rows) else size


class DecodeBuffers:
    """Static inputs of up to `rows` rows whose sequences have up to `tokens` tokens."""

    def __init__(self, rows: int, tokens: int, page_size: int, device: torch.device) -> None:
        self.rows = rows
        self._page_size = page_size
        self._width = -(-tokens // page_size)  # pages of one sequence
        self.tokens = self._width * page_size
        self._tokens = torch.zeros(3, rows, dtype=torch.int64, device=device)  # input ids, positions, slots
        self._lengths = torch.zeros(2, rows + 1, dtype=torch.int32, device=device)  # used (one less), cumulated
        self._pages = torch.zeros(rows, self._width, dtype=torch.int32, device=device)
        self._starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._every = torch.arange(rows, device=device)

    def take(self, step: Step) -> bool:
        """The step is nothing but single rows, and they fit."""
        if len(step.spans) > self.rows:
            return False
        return all(span.is_decode and span.context < self.tokens for span in step.spans)

    def fill(self, step: Step, size: int) -> None:
        """Lay out the step's rows, and padding up to `size` of them."""
        count = len(step.spans)
        table = block_table(step.spans, self._page_size, size)
        for held, given in zip(self._tokens, (step.input_ids, step.positions, step.slots), strict=True):
            held[:count].copy_(given)
        self._tokens[:, count:size] = 0
        self._lengths[0, :size].copy_(torch.from_numpy(table.used))
        self._lengths[1, : size + 1].copy_(torch.from_numpy(table.ends))
        # Columns further right keep earlier rows' pages: nothing past `used` is read.
        self._pages[:size, : table.pages.shape[1]].copy_(torch.from_numpy(table.pages))

    def inputs(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """(input ids, positions, rows with logits), each [size] int64."""
        return self._tokens[0, :size], self._tokens[1, :size], self._every[:size]

    def plan(self, size: int) -> Plan:
        """Where attention finds the keys of the first `size` rows."""
        return Plan(
            slots=self._tokens[2, :size],
            starts=self._starts[: size + 1],
            used=self._lengths[0, :size],
            ends=self._lengths[1, : size + 1],
            pages=self._pages[:size],
            most_rows=1,
            most_keys=self.tokens,
        )
