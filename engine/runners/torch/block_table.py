"""Which pages each span of a step reads, as the arrays a paged kernel wants.

Pure numpy: knows nothing about devices or kernels. Rows past the step's spans are padding: they read one token of
page 0, the dummy page, so that whatever they compute touches nobody's keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.runners.torch.step import Span


@dataclass(frozen=True)
class BlockTable:
    """B spans and the padding after them, N rows in all."""

    used: np.ndarray  # [N] int32, tokens a span sees, its own rows included; never 0
    ends: np.ndarray  # [N + 1] int32, cumulated `used`
    pages: np.ndarray  # [N, P] int32, a span's pages in order; 0 where it has fewer


def block_table(spans: Sequence[Span], page_size: int, rows: int | None = None) -> BlockTable:
    """The table of spans without trees, padded to `rows`."""
    rows = len(spans) if rows is None else rows
    used = np.ones(rows, np.int32)
    used[: len(spans)] = [span.context + span.count for span in spans]
    ends = np.zeros(rows + 1, np.int32)
    np.cumsum(used, out=ends[1:])
    pages = np.zeros((rows, -(-int(used.max()) // page_size)), np.int32)
    for row, span in zip(pages, spans, strict=False):
        at = 0
        for start, stop in span.runs:  # a run starts at the first slot of a page
            count = -(-stop // page_size) - start // page_size
            row[at : at + count] = np.arange(start // page_size, start // page_size + count)
            at += count
    return BlockTable(used, ends, pages)
