"""Which pages hold the keys and values of which token prefix, and which of those pages to give up first.

Knows page numbers and token ids; nothing about tensors, text, requests or who uses a page. Runs in the engine thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import numpy as np
import xxhash

# Pages may be given up early, while others are free, only as long as few of them are missed: one that is computed
# again costs a page of credit, and every registered page earns this much. So at most so many more are computed.
EARNED_CREDIT = 1 / 64
MOST_CREDIT = 1 / 32  # of the pool


def chain_hash(parent: int, tokens: bytes) -> int:
    """64-bit hash of a prefix: the hash of the prefix one page shorter, then the last page's tokens."""
    return xxhash.xxh3_64_intdigest(parent.to_bytes(8, "little") + tokens)


def token_pages(token_ids: Sequence[int] | np.ndarray, page_size: int, first: int, last: int) -> Iterator[bytes]:
    """The tokens of pages `first` .. `last - 1` as bytes, one item per page."""
    data = np.asarray(token_ids[first * page_size : last * page_size], np.int32).tobytes()
    width = 4 * page_size
    return (data[i : i + width] for i in range(0, len(data), width))


@dataclass(eq=False, slots=True, weakref_slot=True)
class Prefix:
    """A page-aligned token prefix: its parent is the prefix one page shorter, the root stands for the namespace.

    Compared by identity. Two equal prefixes are one object as long as anything refers to it, with or without a page,
    so a prefix whose page was evicted and computed again is again the parent of the longer ones still cached.
    """

    parent: Prefix | None
    tokens: bytes  # of the last page; of the root: the namespace
    hash: int
    page: int | None = field(default=None)  # the page that holds the last page's KV, if registered


class PrefixCache:
    """Finds prefixes by hash and keeps the registered pages that nobody uses in order of last use.

    A hit compares the tokens and the identity of the parent, hence all tokens and the namespace: a collision of
    hashes is a miss. The newcomer of two colliding prefixes is not listed and never found.
    """

    def __init__(self, num_pages: int) -> None:
        self._num_pages = num_pages
        self._listed: WeakValueDictionary[int, Prefix] = WeakValueDictionary()  # by hash
        self.registered: dict[int, Prefix] = {}  # by page; read by `Pages` in its hot path
        self._unused: OrderedDict[int, None] = OrderedDict()  # registered pages without a reference, oldest first
        self._early: OrderedDict[int, None] = OrderedDict()  # hashes of what was given up early, oldest first
        self._credit = MOST_CREDIT * num_pages

    def __len__(self) -> int:
        """Number of pages that could be evicted."""
        return len(self._unused)

    # ---- prefixes

    def prefix(self, parent: Prefix | None, tokens: bytes) -> Prefix:
        """The prefix of these tokens, known or new."""
        key = chain_hash(parent.hash if parent else 0, tokens)
        known = self._listed.get(key)
        if known is None:
            known = self._listed[key] = Prefix(parent, tokens, key)
        elif known.parent is not parent or known.tokens != tokens:
            return Prefix(parent, tokens, key)
        return known

    def find(self, parent: Prefix, tokens: bytes) -> Prefix | None:
        """The prefix of these tokens if a page holds it."""
        known = self._listed.get(chain_hash(parent.hash, tokens))
        if known is None or known.page is None or known.parent is not parent or known.tokens != tokens:
            return None
        return known

    def register(self, page: int, parent: Prefix, tokens: bytes) -> Prefix:
        """Let `page` serve this prefix, unless another page does already: then both are kept and that one serves."""
        known = self.registered.get(page)  # a sibling that shares the page may have come first
        if known is not None:
            assert known.tokens == tokens, f"page {page} was registered with other tokens"
            return known
        prefix = self.prefix(parent, tokens)
        if prefix.page is None and self._listed.get(prefix.hash) is prefix:
            prefix.page = page
            self.registered[page] = prefix
            missed = prefix.hash in self._early
            if missed:
                del self._early[prefix.hash]
            self._credit = min(MOST_CREDIT * self._num_pages, self._credit + EARNED_CREDIT - missed)
        return prefix

    def forget(self, page: int) -> None:
        """Unregister a page that is in use and about to hold something else."""
        prefix = self.registered.pop(page, None)
        if prefix is not None:
            prefix.page = None

    def disown(self, page: int) -> None:
        """Unregister a page in use whose content is wrong, and cut off every longer prefix: its parent is unlisted."""
        prefix = self.registered.get(page)
        if prefix is not None:
            self.forget(page)
            del self._listed[prefix.hash]

    # ---- order of eviction

    def retire(self, page: int) -> bool:
        """The last reference to `page` is gone: keep it if it is registered. False: it is not, the page is free."""
        if page not in self.registered:
            return False
        self._unused[page] = None
        return True

    def revive(self, page: int) -> None:
        """`page` gets its first reference again."""
        del self._unused[page]

    def evict(self) -> int:
        """Give up the page that has been unused for longest."""
        page, _ = self._unused.popitem(last=False)
        self.forget(page)
        return page

    @property
    def may_evict_early(self) -> bool:
        """True while what `evict_early` gave up is rarely missed."""
        return self._credit > 0

    def evict_early(self) -> int:
        """`evict` while there is no need to, remembering what went."""
        prefix = self.registered[next(iter(self._unused))]
        self._early[prefix.hash] = None
        if len(self._early) > self._num_pages:  # by now it would have gone anyway
            self._early.popitem(last=False)
        return self.evict()

    def faults(self, ref: list[int]) -> Iterator[str]:
        """What is wrong with the cache, given the number of references of every page."""
        for page, prefix in self.registered.items():
            if prefix.page != page or self._listed.get(prefix.hash) is not prefix:
                yield f"registered page {page} is not the page of its hash"
        if set(self._unused) != {page for page in self.registered if ref[page] == 0}:
            yield "evictable pages are not the registered pages without a reference"
