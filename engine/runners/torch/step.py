"""One forward pass as plain data: which rows are computed, where their KV goes, what each row may see.

Knows nothing about models or requests. Row r of a span sees the span's cached context without a mask and the
rows of its own span under a causal or ancestor mask; a layer's window limits both.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

Run = tuple[int, int]  # slots [start, stop) that hold consecutive tokens


@dataclass(frozen=True)
class Span:
    """The rows of one sequence in this step."""

    start: int  # first row of T
    count: int  # rows; at least one
    context: int  # tokens cached before this step; they live in `runs`
    runs: tuple[Run, ...]  # slots of the context *and* of this step's rows when `tree` is None
    tree: np.ndarray | None = None  # bool [count, count], ancestor or self; None: causal
    depths: np.ndarray | None = None  # int64 [count], depth of each tree row; position = context + depth

    @property
    def stop(self) -> int:
        return self.start + self.count

    @property
    def is_decode(self) -> bool:
        """One causal row: the new token and its context are one stretch of keys."""
        return self.count == 1 and self.tree is None


@dataclass(frozen=True)
class Group:
    """Neighbouring spans that share their first `length` cached tokens."""

    first: int  # index of the first span
    count: int  # spans
    length: int  # tokens; a multiple of the page size


@dataclass
class Step:
    """T rows of B spans; R rows need logits."""

    input_ids: Tensor  # [T] int64, device; ids behind the vocabulary are mixtures
    positions: Tensor  # [T] int64, device; equal for siblings of a draft tree
    slots: Tensor  # [T] int64, device; where this step's K/V are written
    logit_rows: Tensor  # [R] int64, device; a row may repeat (n samples of one prompt)
    spans: list[Span]
    groups: list[Group] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return self.spans[-1].stop
