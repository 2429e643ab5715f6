"""The free pages of one pool and the choice which of them a sequence gets next.

Knows nothing about sequences, hashes or tensors: a page is a number. Runs in the engine thread.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

# A contiguous pool hands out extents, so that attention on the CPU reads few long runs of slots:
#
#   | used | free free free free | used |        lo = first page of the extent, size = its length
#            lo  ^ start                         a new run of n pages starts about (size - n) // 2 pages in
#
# Of the places near the middle the one on the coarsest grid from page 1 is taken: sequences then start at regular
# distances, and one strided view holds the keys of many of them (runners/torch/lanes.py).
# The gap on the left is where the neighbour's sequence goes on growing, the one on the right is for the new run.
# Starting at `lo` would put every new run in the way of its neighbour: two growing sequences would interleave.


ROOMY = 16  # slack, in lengths of the new run, from which it may start beside the exact middle


class FreePages:
    """A set of pages with two ways to take from it; page 0 is never in it."""

    def __init__(self, num_pages: int, contiguous: bool) -> None:
        self._flags = bytearray(b"\1") * num_pages  # [num_pages], 1 = free
        self._flags[0] = 0
        self._view = np.frombuffer(self._flags, np.int8)  # the same memory
        self._stack = None if contiguous else list(range(num_pages - 1, 0, -1))  # last given, first taken
        self.count = num_pages - 1

    def __contains__(self, page: int) -> bool:
        return self._flags[page] == 1

    def give(self, pages: Iterable[int]) -> None:
        flags = self._flags
        for page in pages:
            assert not flags[page], f"page {page} freed twice"
            flags[page] = 1
            self.count += 1
            if self._stack is not None:
                self._stack.append(page)

    def take(self, after: int | None, n: int) -> list[int]:
        """`n` pages (there must be that many), in a contiguous pool from `after + 1` on as far as that is free."""
        assert n <= self.count
        flags = self._flags
        if self._stack is None:
            pages = self._take_extents(after, n)
        else:
            cut = len(self._stack) - n
            pages = self._stack[cut:][::-1]
            del self._stack[cut:]
        for page in pages:
            flags[page] = 0
        self.count -= n
        return pages

    def _take_extents(self, after: int | None, n: int) -> list[int]:
        flags, pages = self._flags, []
        if after is not None:
            page = after + 1
            while len(pages) < n and page < len(flags) and flags[page]:
                pages.append(page)
                flags[page] = 0
                page += 1
        if len(pages) == n:
            return pages
        edges = np.flatnonzero(np.diff(self._view, prepend=0, append=0))  # O(num_pages): only where a run starts
        lows, sizes = edges[0::2], edges[1::2] - edges[0::2]
        while len(pages) < n:
            largest = int(sizes.argmax())
            lo, size = int(lows[largest]), int(sizes[largest])
            length = min(size, n - len(pages))
            start = _near_middle(lo, size - length, length)
            pages.extend(range(start, start + length))
            sizes[largest] = 0  # used up: either it was too short, or nothing is missing any more
        return pages


def _near_middle(low: int, slack: int, length: int) -> int:
    """The start of a run that leaves about half of the slack on either side, on a coarse grid where there is room."""
    if low == 1:
        return low  # page 0 never grows: no gap behind it
    if slack < max(64, ROOMY * length):
        return low + slack // 2
    least, most = low + slack // 4, low + 3 * slack // 4
    step = 1 << most.bit_length()
    while (place := 1 - (1 - least) // step * step) > most:  # the first of 1, 1 + step, 1 + 2 step, ... from `least` on
        step >>= 1
    return place
