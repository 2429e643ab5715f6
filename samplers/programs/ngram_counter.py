"""Counts n-grams of a stream of texts: chunks are counted by sorting, and tables of chunks are merged.

Besides the tables so far, memory holds one chunk and what sorting it takes. Tables of about the same size are merged,
so that every n-gram takes part in few merges.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samplers.programs.ngrams import HIGHEST, LOWEST, Ints, Level, NgramTables

CHUNK = 2**21  # tokens
_LARGEST_VOCABULARY = 2**22  # leaves keys room for 2**41 n-grams of one order


class NgramCounter:
    """Takes token ids in pieces of any length; n-grams do not reach from one text into the next."""

    def __init__(self, vocabulary: int, highest: int = HIGHEST, chunk: int = CHUNK) -> None:
        if not LOWEST <= highest <= HIGHEST:
            raise ValueError(f"the longest n-grams must have {LOWEST} to {HIGHEST} tokens, got {highest}")
        if not 0 < vocabulary <= _LARGEST_VOCABULARY:
            raise ValueError(f"a vocabulary of {vocabulary} tokens is too large")
        self._vocabulary, self._orders, self._chunk = vocabulary, range(LOWEST, highest + 1), chunk
        self._waiting: list[Ints] = []  # ids of the chunk; a piece's n-grams may end in the next one
        self._ends: list[int] = []  # of the texts in it
        self._count = 0  # tokens in it
        self._counted: list[tuple[Level, ...]] = []  # of chunks so far, each at least twice as large as the next

    def add(self, ids: Sequence[int] | Ints) -> None:
        """The current text goes on with these. Raises ValueError for an id outside of the vocabulary."""
        piece = np.asarray(ids, dtype=np.int64)
        if piece.size and not 0 <= piece.min() <= piece.max() < self._vocabulary:
            raise ValueError(f"a token id is not in [0, {self._vocabulary})")
        self._waiting.append(piece)
        self._count += len(piece)
        if self._count >= self._chunk:
            self._close_chunk()

    def end_text(self) -> None:
        self._ends.append(self._count)

    def tables(self, fingerprint: str) -> NgramTables:
        """Everything counted. fingerprint: of the tokenizer."""
        self.end_text()
        self._close_chunk()
        while len(self._counted) > 1:
            self._merge_last()
        return NgramTables(self._vocabulary, fingerprint, self._counted[0])

    def _close_chunk(self) -> None:
        """Count the n-grams that begin in the chunk and have surely ended; the rest begins the next chunk."""
        ids = np.concatenate([*self._waiting, np.empty(0, np.int64)])
        last_end = self._ends[-1] if self._ends else 0
        settled = max(last_end, len(ids) - (self._orders[-1] - 1))
        ends = np.array([*self._ends, len(ids)])
        starts = np.arange(settled)
        left = ends[np.searchsorted(ends, starts, side="right")] - starts
        self._counted.append(_count(ids, left, self._vocabulary, self._orders))
        self._waiting, self._ends, self._count = [ids[settled:].copy()], [], len(ids) - settled
        while len(self._counted) > 1 and _size(self._counted[-2]) < 2 * _size(self._counted[-1]):
            self._merge_last()

    def _merge_last(self) -> None:
        second, first = self._counted.pop(), self._counted.pop()
        self._counted.append(_merged(first, second, self._vocabulary))


def _count(ids: Ints, left: Ints, vocabulary: int, orders: range) -> tuple[Level, ...]:
    """ids: [T]; left: [S] tokens from each start to the end of its text, S <= T."""
    levels = []
    starts, numbers = np.arange(len(left)), ids[: len(left)]
    for order in orders:
        whole = left[starts] >= order
        starts, numbers = starts[whole], numbers[whole]
        keys, numbers, counts = np.unique(
            numbers * vocabulary + ids[starts + order - 1], return_inverse=True, return_counts=True
        )
        levels.append(_level(keys, counts))
    return tuple(levels)


def _merged(first: tuple[Level, ...], second: tuple[Level, ...], vocabulary: int) -> tuple[Level, ...]:
    """The counts of both. Numbers change in a merge but not their order, so keys stay sorted."""
    levels = []
    renumbered = [np.arange(vocabulary)] * 2  # from either's numbers to the merged ones, a single token's being its id
    for pair in zip(first, second, strict=True):
        keys = np.concatenate(
            [
                new[level.keys // vocabulary] * vocabulary + level.keys % vocabulary
                for new, level in zip(renumbered, pair, strict=True)
            ]
        )
        order = np.argsort(keys, kind="stable")  # of two sorted runs: linear time
        keys = keys[order]
        is_new = np.ones(len(keys), bool)
        is_new[1:] = keys[1:] != keys[:-1]
        numbers = np.empty(len(keys), np.int64)
        numbers[order] = is_new.cumsum() - 1
        renumbered = np.split(numbers, [len(pair[0])])
        counts = np.concatenate([level.counts for level in pair])[order]
        at = np.flatnonzero(is_new)
        levels.append(_level(keys[at], np.add.reduceat(counts, at) if len(at) else counts))
    return tuple(levels)


def _size(levels: tuple[Level, ...]) -> int:
    return sum(map(len, levels))


def _level(keys: Ints, counts: Ints) -> Level:
    return Level(keys, np.concatenate([[0], counts.cumsum()]))
