"""The free pages of one pool and the choice which of them a sequence gets next.

Knows nothing about sequences, hashes or tensors: a page is a number. Runs in the engine thread.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

# A contiguous pool hands out extents, so that attention on the CPU reads few long runs of slots. A run whose final
# length is known gets a cell of the grid of that size, one after the other:
#
#   page 0 | cell 0 | cell 1 | ... |       cells of 4, 8, 16 ... pages; a run starts where its cell does
#
# Sequences that come together then start at regular distances, and one strided view holds the keys of many of them
# (runners/torch/lanes.py). A run of unknown length, or one that no cell has room for, starts where an extent leaves
# room on both sides:
#
#   | used | free free free free | used |        lo = first page of the extent, size = its length
#            lo  ^ start                         a new run of n pages starts (size - n) // 2 pages in
#
# The gap on the left is where the neighbour's sequence goes on growing, the one on the right is for the new run.
# Starting at `lo` would put every new run in the way of its neighbour: two growing sequences would interleave.


ROW = 16  # cells; a new row of at least so many is worth making room for


class FreePages:
    """A set of pages with two ways to take from it; page 0 is never in it."""

    def __init__(self, num_pages: int, contiguous: bool) -> None:
        self._flags = bytearray(b"\1") * num_pages  # [num_pages], 1 = free
        self._flags[0] = 0
        self._view = np.frombuffer(self._flags, np.int8)  # the same memory
        self._stack = None if contiguous else list(range(num_pages - 1, 0, -1))  # last given, first taken
        self.count = num_pages - 1
        # by size of cells: what the last one was to be near to, and which it was
        self._last_cell: dict[int, tuple[int | None, int]] = {}

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

    def take(self, after: int | None, n: int, room: int = 0, near: int | None = None) -> list[int]:
        """`n` pages (there must be that many), in a contiguous pool from `after + 1` on as far as that is free.

        room: pages that the run is expected to grow to; 0 when nobody knows. near: a new run is best placed behind
        this page; None: behind the run placed last.
        """
        assert n <= self.count
        flags = self._flags
        if self._stack is None:
            pages = self._take_extents(after, n, room, near)
        else:
            cut = len(self._stack) - n
            pages = self._stack[cut:][::-1]
            del self._stack[cut:]
        for page in pages:
            flags[page] = 0
        self.count -= n
        return pages

    def _take_extents(self, after: int | None, n: int, room: int, near: int | None) -> list[int]:
        flags, pages = self._flags, []
        if after is not None:
            page = after + 1
            while len(pages) < n and page < len(flags) and flags[page]:
                pages.append(page)
                flags[page] = 0
                page += 1
        if len(pages) == n:
            return pages
        if room >= (missing := n - len(pages)) and (start := self._cell(room, near)) is not None:
            return pages + list(range(start, start + missing))
        edges = np.flatnonzero(np.diff(self._view, prepend=0, append=0))  # O(num_pages): only where a run starts
        lows, sizes = edges[0::2], edges[1::2] - edges[0::2]
        while len(pages) < n:
            largest = int(sizes.argmax())
            lo, size = int(lows[largest]), int(sizes[largest])
            length = min(size, n - len(pages))
            start = lo if lo == 1 else lo + (size - length) // 2  # page 0 never grows: no gap behind it
            pages.extend(range(start, start + length))
            sizes[largest] = 0  # used up: either it was too short, or nothing is missing any more
        return pages

    def has_cells(self, room: int, near: int | None) -> bool:
        """True if the next run of `room` pages continues a row of cells, or starts one of some length."""
        if self._stack is not None:
            return True
        size, clean = self._clean_cells(room)
        return self._next(size, near) in clean or _longest_run(clean)[1] >= min(ROW, (len(self._flags) - 1) // size)

    def _cell(self, room: int, near: int | None) -> int | None:
        """First page of the next cell for `room` pages that is free as a whole; None: there is none."""
        size, clean = self._clean_cells(room)
        if not len(clean):
            return None
        cell = self._next(size, near)
        if cell not in clean:
            cell = _longest_run(clean)[0]  # where the next ones find their places behind this one
        self._last_cell[size] = (near, cell)
        return 1 + cell * size

    def _next(self, size: int, near: int | None) -> int:
        """The cell that continues the row of the last one."""
        asked, last = self._last_cell.get(size, (None, -1))
        if near is not None and near != asked:  # the first fork of a branch; its siblings follow it
            last = (near - 1) // size
        return last + 1

    def _clean_cells(self, room: int) -> tuple[int, npt.NDArray[np.int64]]:
        """(pages of a cell, the cells that are free as a whole)."""
        size = 1 << max(0, room - 1).bit_length()
        count = (len(self._flags) - 1) // size
        return size, np.flatnonzero(self._view[1 : 1 + count * size].reshape(count, size).all(1))


def _longest_run(ascending: npt.NDArray[np.int64]) -> tuple[int, int]:
    """(first number, length) of the longest stretch of consecutive numbers; length 0 if there are none."""
    if not len(ascending):
        return 0, 0
    firsts = np.flatnonzero(np.diff(ascending, prepend=-2) > 1)
    lengths = np.diff(firsts, append=len(ascending))
    longest = int(lengths.argmax())
    return int(ascending[firsts[longest]]), int(lengths[longest])
