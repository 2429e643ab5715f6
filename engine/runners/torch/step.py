"""One forward pass as plain data: which rows are computed, where their KV goes, what each row may see.

Knows nothing about models or requests. A row sees its span's cached context without a mask, and the tokens behind it
under a causal or ancestor mask; a layer's window limits both.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

Run = tuple[int, int]  # slots [start, stop) that hold consecutive tokens


@dataclass(frozen=True)
class Span:
    """The rows of one sequence in this step.

    Behind the context lie `width` tokens: the scratch rows of a tree that earlier steps computed, if it is grown level
    by level, and last of all this step's rows.
    """

    start: int  # first row of T
    count: int  # rows; at least one
    context: int  # tokens cached before this step that every row sees
    runs: tuple[Run, ...]  # slots of the context and of the `width` tokens behind it
    tree: np.ndarray | None = None  # bool [count, width], ancestor or self; None: causal
    depths: np.ndarray | None = None  # int64 [width], behind the context; given with `tree`

    @property
    def stop(self) -> int:
        return self.start + self.count

    @property
    def width(self) -> int:
        """Tokens behind the context."""
        return self.count if self.tree is None else self.tree.shape[1]

    @property
    def length(self) -> int:
        """Tokens in `runs`."""
        return self.context + self.width

    @property
    def key_positions(self) -> np.ndarray:
        """[width] int64: positions of the tokens behind the context."""
        return self.context + (np.arange(self.count) if self.depths is None else self.depths)

    @property
    def positions(self) -> np.ndarray:
        """[count] int64: positions of this step's rows."""
        return self.key_positions[self.width - self.count :]

    @property
    def first_position(self) -> int:
        """The lowest of this step's rows."""
        return self.context + (0 if self.depths is None else int(self.depths[-self.count :].min()))

    @property
    def last_position(self) -> int:
        """The highest of this step's rows."""
        return self.context + (self.count - 1 if self.depths is None else int(self.depths[-self.count :].max()))

    @property
    def seen(self) -> np.ndarray:
        """[count, width] bool: which of the tokens behind the context each row sees, where no window hides them."""
        every = np.arange(self.count)
        return every[:, None] >= every if self.tree is None else self.tree

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
