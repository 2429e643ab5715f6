"""Finished outputs of one tenant, and where in them an ending of the current text occurs.

A ring of tokens with hash chains (as in deflate, RFC 1951 section 4): each position knows the previous one at which
the same tokens end. Memory is bounded by the ring, the oldest outputs make room. Takes no clock: times are given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spec_decode.drafters.growth import Continuation, Match

Ints = NDArray[np.int64]
Place = tuple[int, ...]  # positions; what follows is the token at each of them

ORDERS = (1, 2, 4, 8)  # lengths of stretches that are chained
MOST_LOOKED_AT = 64  # positions of a chain, the latest ones
_SMALLEST = 2**12  # tokens of the first ring
_END = -1  # stands behind each output
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth, TAOCP 3, section 6.4)


class _Output(NamedTuple):
    start: int  # position of the first token
    time: float  # when it was added


class PastOutputs:
    """Positions count from the first output ever and never repeat; position i lies in the ring at i % its size."""

    def __init__(self, capacity: int, most_outputs: int) -> None:
        """capacity: tokens, a power of two, one more than it can hold of one output."""
        self._capacity, self._most_outputs = capacity, most_outputs
        self._outputs: deque[_Output] = deque()  # those that are held
        self._end = 0  # position behind the last token
        self._make_ring(min(_SMALLEST, capacity))

    def __len__(self) -> int:
        """Outputs that are held."""
        return len(self._outputs)

    def add(self, output: Sequence[int], now: float) -> None:
        """Of an output that is too long, the end."""
        ids = np.array([*output[-self._capacity + 1 :], _END], np.int64)
        while self._end - self._start + len(ids) > self._size < self._capacity:
            self._grow()
        while len(self._outputs) >= self._most_outputs or self._end - self._start + len(ids) > self._size:
            self._outputs.popleft()
        self._outputs.append(_Output(self._end, now))
        self._insert(ids)

    def expire(self, before: float) -> None:
        """Forget what was added earlier."""
        while self._outputs and self._outputs[0].time < before:
            self._outputs.popleft()

    def matches(self, ending: Sequence[int]) -> Iterator[Match[Place]]:
        """Endings of a text that occur here, longest first and at most as long as `ending`.

        Of each there are the positions among the `MOST_LOOKED_AT` latest at which its last 8, 4, 2 or 1 tokens (as many
        as it has) occur.
        """
        longest = len(ending)
        for order in reversed(ORDERS):
            if order <= longest:
                found = [(self._common(ending, at, longest), at + 1) for at in self._chain(ending, order)]
                found = [(length, place) for length, place in found if length >= order]
                for length in sorted({length for length, _ in found}, reverse=True):
                    yield Match(length, tuple(place for other, place in found if other >= length))
                longest = order - 1

    def continuations(self, place: Place) -> list[Continuation[Place]]:
        behind: dict[int, list[int]] = {}
        for position in place:
            token = self._tokens[position % self._size]
            if token != _END:
                behind.setdefault(token, []).append(position + 1)
        return [Continuation(token, len(places), tuple(places)) for token, places in behind.items()]

    @property
    def _start(self) -> int:
        """Position of the first token that is held."""
        return self._outputs[0].start if self._outputs else self._end

    def _make_ring(self, size: int) -> None:
        self._size = size
        self._tokens = np.full(size, _END, np.int64).data
        self._back = [np.zeros(size, np.int64).data for _ in ORDERS]  # steps to the chain's previous position
        self._heads = [np.full(size, -1, np.int64) for _ in ORDERS]  # hash -> the latest position

    def _grow(self) -> None:
        kept = np.array([self._tokens[at % self._size] for at in range(self._start, self._end)], np.int64)
        outputs, self._end = list(self._outputs), self._start
        self._make_ring(2 * self._size)
        for output in np.split(kept, [output.start - self._start for output in outputs[1:]]):
            self._insert(output)

    def _insert(self, ids: Ints) -> None:
        """ids: one output with its end."""
        positions = np.arange(self._end, self._end + len(ids))
        cells = positions % self._size
        np.asarray(self._tokens)[cells] = ids
        for order, back, heads in zip(ORDERS, self._back, self._heads, strict=True):
            followed = slice(order - 1, -2)  # nothing follows an output's last token
            if len(ids[followed]):
                previous = _previous(self._hashes(ids[:-2], order), positions[followed], heads)
                np.asarray(back)[cells[followed]] = positions[followed] - previous
        self._end += len(ids)

    def _chain(self, ending: Sequence[int], order: int) -> Iterator[int]:
        """The latest positions at which, hashes permitting, the last `order` tokens occur."""
        [key] = self._hashes(np.array(ending[-order:], np.int64), order)
        at, start, back = int(self._heads[ORDERS.index(order)][key]), self._start, self._back[ORDERS.index(order)]
        for _ in range(MOST_LOOKED_AT):
            if at < start:
                break
            yield at
            at -= back[at % self._size]

    def _common(self, ending: Sequence[int], at: int, longest: int) -> int:
        """How many of the last tokens of `ending` are also the last ones at a position."""
        length = 0
        while length < longest and self._tokens[(at - length) % self._size] == ending[-1 - length]:
            length += 1
        return length

    def _hashes(self, ids: Ints, order: int) -> Ints:
        """[T - order + 1] of every `order` tokens in a row, below the size of the ring. ids: [T]."""
        windows = np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64), order)
        mixed = np.zeros(len(windows), np.uint64)
        for column in windows.T:
            mixed = (mixed ^ column) * _FACTOR  # modulo 2^64
        return (mixed >> np.uint64(64 - self._size.bit_length() + 1)).astype(np.int64)


def _previous(keys: Ints, positions: Ints, heads: Ints) -> Ints:
    """[K] the position before each with the same key, -1 without one. heads: [keys], of each the latest position so
    far; those of `positions`, which rise, become the latest."""
    order = np.argsort(keys, kind="stable")
    keys, positions = keys[order], positions[order]
    first = np.append(True, keys[1:] != keys[:-1])
    result = np.empty(len(keys), np.int64)
    result[order] = np.where(first, heads[keys], np.append(-1, positions[:-1]))
    heads[keys] = positions  # of equal keys the last one stays
    return result
