"""Stateless random numbers: Philox4x32-10 keyed by request, counted by what the number is for.

A number is a pure function of (seed, choice, position, purpose, lane), so batch mates, preemption, forks and
restarts cannot change it. Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_INCREMENTS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_MASK = 0xFFFFFFFF
_LOW, _HALF = np.uint64(_MASK), np.uint64(32)
_FACTORS = np.array(_MULTIPLIERS, np.uint64)
_SCHEDULE = np.array(_INCREMENTS, np.uint64) * np.arange(_ROUNDS, dtype=np.uint64)[:, None]  # [rounds, 2]
GROUP_CHOICE = _MASK  # choice word of numbers that belong to a whole group of choices


class Purpose(IntEnum):
    """What a number is drawn for; two purposes never share one. User samplers take numbers from 256 on."""

    DRAW = 1
    FORK = 2
    NOISE = 3
    XTC = 4
    ACCEPT = 5
    RESIDUAL = 6
    DRAFT = 7
    CODE_OFFSET = 8
    CODE_PERM = 9
    CODE_BITS = 10
    VOCAB_PERM = 11
    BASIS = 12
    TREE = 13
    EAGER = 14
    BOUNDARY = 15


class Stream(NamedTuple):
    """One request's or branch's random stream."""

    key: int  # signed 64-bit
    choice: int  # 32-bit word


def philox_reference(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """One block in plain integers, straight from the definition."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = _MULTIPLIERS[0] * a, _MULTIPLIERS[1] * c
        a, b, c, d = (p1 >> 32) ^ b ^ k0, p1 & _MASK, (p0 >> 32) ^ d ^ k1, p0 & _MASK
        k0, k1 = (k0 + _INCREMENTS[0]) & _MASK, (k1 + _INCREMENTS[1]) & _MASK
    return a, b, c, d


def philox(
    keys: npt.ArrayLike,
    choices: npt.ArrayLike,
    positions: npt.ArrayLike,
    lanes: npt.ArrayLike,
    purposes: npt.ArrayLike,
) -> tuple[npt.NDArray[np.uint64], ...]:
    """Blocks for broadcastable arrays of keys (int64) and counter words; four arrays of 32-bit words in uint64."""
    key = np.asarray(keys, np.int64).view(np.uint64)
    words = [np.asarray(x).astype(np.uint64, copy=False) for x in (lanes, positions, choices, purposes)]
    shape = np.broadcast_shapes(key.shape, *(word.shape for word in words))
    # both halves of a round at once: first the words that are multiplied, then the two others
    first, second = np.empty((2, *shape), np.uint64), np.empty((2, *shape), np.uint64)
    first[0], second[0], first[1], second[1] = words
    ends = (1,) * len(shape)
    halves = np.stack([key & _LOW, key >> _HALF]).reshape(2, *ends[key.ndim :], *key.shape)
    rounds = (halves + _SCHEDULE.reshape(_ROUNDS, 2, *ends)) & _LOW
    factors = _FACTORS.reshape(2, *ends)
    for own in rounds:
        products = (first * factors)[::-1]
        first = products >> _HALF
        first ^= second
        first ^= own
        second = products & _LOW
    return first[0], second[0], first[1], second[1]


def k52(high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The 52 random bits of two words as an integer in [0, 2^52)."""
    return ((high << np.uint64(20)) | (low >> np.uint64(12))).astype(np.int64)


def uniform(bits: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(bits + 1/2) 2^-52: in [2^-53, 1 - 2^-53], never 0 or 1, exact in fp64."""
    return (bits.astype(np.float64) + 0.5) * 2.0**-52


def child(stream: Stream, position: int, ordinal: int) -> Stream:
    """The stream of child `ordinal` of a fork at `position`; child 0 keeps its parent's."""
    if ordinal == 0:
        return stream
    key = stream.key & (2**64 - 1)
    words = philox_reference((ordinal, position, stream.choice, Purpose.FORK), (key & _MASK, key >> 32))
    child_key = words[0] | words[1] << 32
    return Stream(child_key - 2**64 if child_key >= 2**63 else child_key, 0)


class Noise:
    """Random numbers for the rows of one call."""

    def __init__(
        self,
        keys: npt.NDArray[np.int64],
        choices: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        draw: Callable[[], npt.NDArray[np.int64]] | None = None,
    ) -> None:
        self.keys, self.choices, self.positions = keys, choices, positions  # each [R]
        self._draw = draw  # a cheaper way to the bits of the plain draw

    def draw_bits(self) -> npt.NDArray[np.int64]:
        """[R] integers in [0, 2^52) of the plain draw."""
        return self.bits(Purpose.DRAW) if self._draw is None else self._draw()

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> Noise:
        return Noise(self.keys[rows], self.choices[rows], self.positions[rows])

    def bits(self, purpose: int, lane: int = 0) -> npt.NDArray[np.int64]:
        """[R] integers in [0, 2^52)."""
        words = philox(self.keys, self.choices, self.positions, lane, purpose)
        return k52(words[0], words[1])

    def uniform(self, purpose: int, lane: int = 0) -> npt.NDArray[np.float64]:
        """[R] uniforms."""
        return uniform(self.bits(purpose, lane))

    def per_token(self, purpose: int, vocab: int) -> npt.NDArray[np.float64]:
        """[R, V] uniforms: lane id // 2, first pair of words for even ids, second for odd ones."""
        lanes = np.arange((vocab + 1) // 2)
        words = philox(self.keys[:, None], self.choices[:, None], self.positions[:, None], lanes, purpose)
        pairs = np.stack([k52(words[0], words[1]), k52(words[2], words[3])], -1)
        return uniform(pairs.reshape(len(self.keys), -1)[:, :vocab])


class DrawBits:
    """The plain draw's bits of every slot, made for many positions at once: one vectorised call per `AHEAD` tokens
    costs as much as one for a single token."""

    AHEAD = 64  # positions, a power of two

    def __init__(self, slots: int) -> None:
        self._bits = np.zeros((slots, self.AHEAD), np.int64)
        self._block = np.full(slots, -1, np.int64)  # which positions the row holds: position // AHEAD; -1: none

    def forget(self, slot: int) -> None:
        """The slot has a new stream."""
        self._block[slot] = -1

    def __call__(
        self,
        slots: npt.NDArray[np.int64],
        keys: npt.NDArray[np.int64],
        choices: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.int64]:
        """[R] integers in [0, 2^52), equal to `Noise.bits(DRAW)`; keys and choices are those of the slots."""
        blocks = positions // self.AHEAD
        stale = self._block[slots] != blocks
        if stale.any():
            mine = slots[stale]
            ahead = blocks[stale, None] * self.AHEAD + np.arange(self.AHEAD)
            words = philox(keys[stale, None], choices[stale, None], ahead, 0, Purpose.DRAW)
            self._bits[mine] = k52(words[0], words[1])
            self._block[mine] = blocks[stale]
            if (self._block[slots] != blocks).any():  # one slot at positions of two blocks: rows of a draft tree
                return Noise(keys, choices, positions).bits(Purpose.DRAW)
        return self._bits[slots, positions % self.AHEAD]
