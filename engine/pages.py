"""Page tables of the paged KV memory: who holds which page, what may be written, what must be copied first.

Plain Python and numpy: knows nothing about torch, tensors, text or requests. Runs in the engine thread.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Container, Iterable, Sequence

import numpy as np

from engine.free_pages import FreePages
from engine.prefix_cache import Prefix, PrefixCache, token_pages

EVICTION_BATCH_PAGES = 16  # at most; contiguous pools evict several pages at once so that they form extents

# Positions of one branch (m = page_size)
# [0, m * registered)            known to the prefix cache: read only for everybody
# [.., m * (length // m))        full pages, possibly shared with forks: read only while shared
# [m * (length // m), length)    the partial tail page: written in place by a sole holder, else copied first
# [length, m * len(pages))       rest of the tail page: reserved by `append`, never read before
#
# States of a page: dummy (page 0) | free | cached (ref 0, registered, evictable) | used (ref >= 1)

MAKE_ROOM_ATTEMPTS = 16  # each looks at all free pages


class OutOfPages(Exception):
    """No free page is left and nothing can be evicted."""


class IntegrityError(Exception):
    """The bookkeeping contradicts itself: our own bug, nothing computed from here on can be trusted."""


class Branch:
    """The page table of one sequence. Only `Pages` changes it."""

    __slots__ = ("expected", "length", "pages", "prefixes", "starts")

    def __init__(self, root: Prefix, expected: int = 0) -> None:
        self.expected = expected  # pages it is likely to end with; 0: unknown
        self.pages: list[int] = []  # page i holds positions i * page_size .. (i + 1) * page_size - 1
        self.length = 0  # tokens whose slots are reserved or filled; len(pages) = ceil(length / page_size)
        self.prefixes = [root]  # the hash chain: the namespace, then one prefix per registered leading page
        self.starts: list[int] = []  # indices into `pages` where a run of adjacent pages starts

    def _extend(self, pages: list[int]) -> None:
        last = self.pages[-1] if self.pages else -1
        for i, page in enumerate(pages, len(self.pages)):
            if page != last + 1:
                self.starts.append(i)
            last = page
        self.pages += pages

    def _cut(self, keep: int) -> list[int]:
        """Drop the pages from index `keep` on and return them."""
        dropped = self.pages[keep:]
        del self.pages[keep:]
        while self.starts and self.starts[-1] >= keep:
            self.starts.pop()
        return dropped


class Pages:
    """All pages of one pool and the operations of the sequences that live in it."""

    def __init__(self, num_pages: int, page_size: int, contiguous: bool) -> None:
        if num_pages < 2:
            raise ValueError(f"num_pages must be at least 2 (page 0 is the dummy page), got {num_pages}")
        if page_size < 1 or page_size & (page_size - 1):
            raise ValueError(f"page_size must be a power of two, got {page_size}")
        self.num_pages = num_pages
        self.page_size = page_size
        self._ref = [0] * num_pages
        self._free = FreePages(num_pages, contiguous)
        self._cache = PrefixCache(num_pages)
        self._registered = self._cache.registered
        self._eviction_batch = max(1, min(EVICTION_BATCH_PAGES, num_pages // 64)) if contiguous else 1
        self._copies: dict[int, int] = {}  # destination -> source of page copies not drained yet

    # ---- counts

    @property
    def free(self) -> int:
        """Pages that hold nothing."""
        return self._free.count

    @property
    def cached(self) -> int:
        """Pages that only the prefix cache holds."""
        return len(self._cache)

    @property
    def in_use(self) -> int:
        """Pages that live branches hold."""
        return self.num_pages - 1 - self.available()

    def available(self) -> int:
        """Pages that `append` could hand out: free ones and evictable ones."""
        return self._free.count + len(self._cache)

    def pages_needed(self, branch: Branch, k: int) -> int:
        """Pages that `append(branch, k)` would allocate, a copied tail page included."""
        if k == 0:
            return 0
        return -(-(branch.length + k) // self.page_size) - len(branch.pages) + self._tail_is_shared(branch)

    # ---- operations of a sequence

    def new_branch(self, namespace: bytes = b"", expected: int = 0) -> Branch:
        """An empty branch. It finds and fills cached prefixes of its own namespace only.

        expected: tokens it will hold at most; a hint that keeps its pages together (0: unknown).
        """
        return Branch(self._cache.prefix(None, namespace), -(-expected // self.page_size))

    def attach_prefix(self, branch: Branch, token_ids: Sequence[int] | np.ndarray) -> int:
        """Start an empty branch with the longest cached prefix; returns its number of tokens.

        At least the last token is left to be computed: without a row there are no logits.
        """
        assert not branch.pages, "attach_prefix needs an empty branch"
        limit = max(0, len(token_ids) - 1) // self.page_size
        pages: list[int] = []
        for tokens in token_pages(token_ids, self.page_size, 0, limit):
            prefix = self._cache.find(branch.prefixes[-1], tokens)
            if prefix is None:
                break
            branch.prefixes.append(prefix)
            pages.append(prefix.page)
        for page in pages:
            if self._ref[page] == 0:
                self._cache.revive(page)
            self._ref[page] += 1
        branch._extend(pages)
        branch.length = len(pages) * self.page_size
        return branch.length

    def append(self, branch: Branch, k: int) -> None:
        """Reserve slots for `k` more tokens; they may be written once the drained copies have been executed.

        Raises OutOfPages and changes nothing if there are too few pages.
        """
        pages = branch.pages
        end = branch.length + k
        if branch.length < end <= len(pages) * self.page_size:  # within the tail page: the case of nearly every step
            tail = pages[-1]
            if self._ref[tail] == 1 and tail not in self._registered:
                branch.length = end
                return
        if k:
            self._grow(branch, k)

    def _grow(self, branch: Branch, k: int) -> None:
        assert k > 0
        need = self.pages_needed(branch, k)
        if need > self.available():
            raise OutOfPages(f"{need} pages needed, {self.available()} available")
        if self._tail_is_shared(branch):
            # A run of its own: the page after the tail is left to the holder that will write the tail in place.
            new = self._allocate(None, need, branch.expected - len(branch.pages) + 1, branch.pages[-1])
            old = branch._cut(len(branch.pages) - 1)[0]
            self._ref[old] -= 1
            self._copies[new[0]] = self._copies.get(old, old)  # `old` itself may still be waiting for its content
        else:
            after = branch.pages[-1] if branch.pages else None
            new = self._allocate(after, need, branch.expected - len(branch.pages), after)
            if branch.length % self.page_size:
                self._cache.forget(branch.pages[-1])  # cut by a branch while another one, now gone, held it too
        branch._extend(new)
        branch.length += k

    def register(self, branch: Branch, token_ids: Sequence[int] | np.ndarray) -> None:
        """Offer the full pages to later requests. `token_ids`: all tokens whose KV finished steps have computed."""
        known = len(branch.prefixes) - 1
        full = min(len(token_ids), branch.length) // self.page_size
        if full <= known:
            return
        for i, tokens in enumerate(token_pages(token_ids, self.page_size, known, full), known):
            branch.prefixes.append(self._cache.register(branch.pages[i], branch.prefixes[-1], tokens))

    def forget(self, branch: Branch, damaged: Container[int]) -> None:
        """Nobody finds this branch's pages any more, from the first of the `damaged` ones on; who has them keeps them.

        What others have cached behind them, computed from them, is not found either, not even when the same tokens
        have been computed anew.
        """
        first = next((i for i, page in enumerate(branch.pages) if page in damaged), len(branch.pages))
        for page in branch.pages[first:]:
            self._cache.disown(page)

    def fork(self, branch: Branch) -> Branch:
        """A second branch over the same pages, the partial tail included. Reserved slots must have been written."""
        child = Branch(branch.prefixes[0], branch.expected)
        child.pages = branch.pages.copy()
        child.length = branch.length
        child.prefixes = branch.prefixes.copy()
        child.starts = branch.starts.copy()
        for page in child.pages:
            self._ref[page] += 1
        return child

    def truncate(self, branch: Branch, m: int) -> None:
        """Keep the first `m` tokens."""
        assert 0 <= m <= branch.length
        if m == branch.length:
            return
        self._drop(branch._cut(-(-m // self.page_size)))
        branch.length = m
        del branch.prefixes[1 + m // self.page_size :]
        if m % self.page_size and self._ref[branch.pages[-1]] == 1:
            self._cache.forget(branch.pages[-1])

    def release(self, branch: Branch) -> None:
        """Give all pages back; the branch is empty afterwards. Releasing it again does nothing."""
        self.truncate(branch, 0)

    def drain_copies(self) -> list[tuple[int, int]]:
        """The (source, destination) page copies to execute before the next forward and before any compaction.

        Destinations are distinct and every source means its content before the first copy, so executing them in
        order and reading all before writing any are both right. A source may be free or handed out by now: its
        content is intact until the forward.
        """
        copies = [(source, destination) for destination, source in self._copies.items()]
        self._copies.clear()
        return copies

    def compact_slots(self, branch: Branch, ctx: int, accepted_rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Moves (source slots, destination slots), both int64, that bring accepted scratch rows to the front.

        Row i of the scratch lies at position ctx + i; `accepted_rows` ascend from 0. All reads come before any
        write. Empty if the rows are 0, 1, 2, ...; the caller then truncates to ctx + len(accepted_rows).
        """
        rows = list(accepted_rows)
        assert all(a < b for a, b in itertools.pairwise(rows)) and (not rows or rows[0] >= 0)
        moved = [(self.slot(branch, ctx + a), self.slot(branch, ctx + j)) for j, a in enumerate(rows) if a != j]
        for page in {slot // self.page_size for _, slot in moved}:
            assert self._ref[page] == 1 and page not in self._registered, f"scratch page {page} is not ours alone"
            assert page not in self._copies.values(), f"scratch page {page} has yet to be copied"
        moves = np.array(moved, np.int64).reshape(-1, 2)
        return moves[:, 0].copy(), moves[:, 1].copy()

    # ---- where tokens lie

    def slot(self, branch: Branch, position: int) -> int:
        """Slot of one position; cheaper than `slots` for a single row."""
        assert 0 <= position < branch.length
        return branch.pages[position // self.page_size] * self.page_size + position % self.page_size

    def slots(self, branch: Branch, start: int, count: int) -> np.ndarray:
        """[count] int64: the slots of positions start .. start + count - 1."""
        assert start >= 0 and start + count <= branch.length
        size = self.page_size
        first = start // size
        pages = np.array(branch.pages[first : -(-(start + count) // size)], np.int64)
        start -= first * size
        return (pages[:, None] * size + np.arange(size)).reshape(-1)[start : start + count]

    def runs(self, branch: Branch, start: int, stop: int) -> list[tuple[int, int]]:
        """Slot runs [s, e) of positions start .. stop - 1 in order, adjacent pages merged."""
        assert start >= 0 and stop <= branch.length
        if start >= stop:
            return []
        size, pages, starts = self.page_size, branch.pages, branch.starts
        if len(starts) == 1:
            base = pages[0] * size
            return [(base + start, base + stop)]
        found = []
        i = bisect_right(starts, start // size)
        while start < stop:
            first = starts[i - 1]
            end = min(stop, starts[i] * size) if i < len(starts) else stop
            shift = (pages[first] - first) * size
            found.append((start + shift, end + shift))
            start = end
            i += 1
        return found

    def shared_pages(self, branches: Sequence[Branch]) -> int:
        """Number of leading full pages that all these branches have in common."""
        if not branches:
            return 0
        full = min(branch.length for branch in branches) // self.page_size
        tables = [branch.pages[:full] for branch in branches]
        low, high = min(tables), max(tables)  # in lexical order, so what these two share is shared by all
        if low == high:
            return full
        return next(i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)

    # ---- pages

    def _tail_is_shared(self, branch: Branch) -> bool:
        return branch.length % self.page_size != 0 and self._ref[branch.pages[-1]] > 1

    def _allocate(self, after: int | None, n: int, room: int, near: int | None) -> list[int]:
        if n > self._free.count:
            evict = min(len(self._cache), max(n - self._free.count, self._eviction_batch))
            self._free.give([self._cache.evict() for _ in range(evict)])
        if after is None and room >= n:
            self._make_room(room, near)
        pages = self._free.take(after, n, room, near)
        for page in pages:
            self._ref[page] = 1
        return pages

    def _make_room(self, room: int, near: int | None) -> None:
        """Evict what was used longest ago for a row of places where new runs of `room` pages stay in one piece.

        Only while the cache holds a quarter of the pool, and as long as hardly anybody misses what went this way.
        """
        cache, attempts = self._cache, MAKE_ROOM_ATTEMPTS
        while attempts and cache.may_evict_early and 4 * len(cache) >= self.num_pages:
            if self._free.has_cells(room, near):
                break
            self._free.give([cache.evict_early() for _ in range(min(room, len(cache)))])
            attempts -= 1

    def _drop(self, pages: list[int]) -> None:
        """Give up one reference to each; deeper pages first, so that they are evicted before their parents."""
        freed = []
        for page in reversed(pages):
            self._ref[page] -= 1
            if self._ref[page] == 0 and not self._cache.retire(page):
                freed.append(page)
                self._copies.pop(page, None)  # nobody is waiting for the content any more
        self._free.give(freed)

    # ---- invariants

    def check_integrity(self, live: Iterable[Branch]) -> None:
        """Raise IntegrityError if the bookkeeping contradicts itself or pages leaked; `live`: all branches in use."""
        faults = list(self._cache.faults(self._ref))
        holders: Counter[int] = Counter()
        place: dict[int, int] = {}
        for branch in live:
            holders.update(branch.pages)
            if len(branch.pages) != -(-branch.length // self.page_size):
                faults.append(f"{len(branch.pages)} pages for {branch.length} tokens")
            if len(branch.prefixes) - 1 > branch.length // self.page_size:
                faults.append(f"{len(branch.prefixes) - 1} registered pages in {branch.length} tokens")
            breaks = [i for i, p in enumerate(branch.pages) if i == 0 or p != branch.pages[i - 1] + 1]
            if branch.starts != breaks:
                faults.append(f"run starts {branch.starts} should be {breaks}")
            faults += [
                f"page {p} is shared at indices {place[p]} and {i}"
                for i, p in enumerate(branch.pages)
                if place.setdefault(p, i) != i
            ]
        for page, ref in enumerate(self._ref):
            if ref != holders[page]:
                faults.append(f"page {page}: ref {ref}, held by {holders[page]} branches")
            cached = ref == 0 and page in self._registered
            if (page == 0) + (page in self._free) + cached + (ref > 0) != 1:
                faults.append(f"page {page} is not exactly one of dummy, free, cached, used")
        if self.free != sum(page in self._free for page in range(self.num_pages)):
            faults.append("miscounted free pages")
        faults += [f"copy into page {page}, which is free" for page in self._copies if page in self._free]
        if faults:
            raise IntegrityError("; ".join(faults))
