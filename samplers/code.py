"""Codes of arithmetic sampling: a point of [0, 1) as integers, and the code books that spread n of them.

Plain Python integers on the host; knows nothing about logits, slots or torch. Vilnis et al., Arithmetic sampling
(arXiv 2210.15458), with range-coder integers in place of its floats: a float runs out of bits after one or two
dozen tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from samplers.quantise import BITS
from samplers.rng import GROUP_CHOICE, Purpose, Stream, philox

CODE_BITS = 96  # of a fresh code: its width is 2^96, and never more
LEAST_BITS = 64  # a narrower code is extended
WORD = 32


class Code(NamedTuple):
    """What is left of a code inside the interval decoded so far: the point x / width. 0 <= x < width <= 2^96.

    Given the tokens so far, x is uniform on its range; random words appended below keep it so.
    """

    x: int
    width: int

    def target(self) -> int:
        """The token to decode is the first whose cumulative weight exceeds this integer in [0, 2^52)."""
        return (((self.x + 1) << BITS) - 1) // self.width

    def narrowed(self, before: int, upto: int) -> Code:
        """The code inside its token's interval. before, upto: cumulative weights without and with that token."""
        low, high = self.width * before >> BITS, self.width * upto >> BITS
        assert low <= self.x < high, "the code lies outside the interval of its token"
        return Code(self.x - low, high - low)

    @property
    def is_short(self) -> bool:
        return self.width < 1 << LEAST_BITS

    def extended(self, words: Sequence[int]) -> Code:
        """At least 2^64 wide. Two random 32-bit words are always enough: a token that can be drawn keeps 2^12 - 1 of
        2^64."""
        x, width = self
        for word in words:
            if width < 1 << LEAST_BITS:
                x, width = x << WORD | word, width << WORD
        return Code(x, width)


def fresh(book: str, stream: Stream, n: int) -> Code:
    """The code of choice `stream.choice` in a group of n; alone, each is uniform.

    Choices beyond n belong to further groups (requests with several prompts), n to each.
    """
    group, index = divmod(stream.choice, n)
    if book == "iid":
        return Code(_offset(stream.key, stream.choice, 0), 1 << CODE_BITS)
    return Code(BOOKS[book](index, n, stream.key, group), 1 << CODE_BITS)


def resumed(stream: Stream, position: int) -> Code:
    """A new code for output that continues at `position` while the code it was decoded with is gone: it has to be
    independent of the tokens so far."""
    return Code(_offset(stream.key, stream.choice, 1 + position), 1 << CODE_BITS)


def _lattice(index: int, n: int, key: int, group: int) -> int:
    """(s + u) / n with one u for the group. The strata s are dealt out at random, or else choice 0 would always get
    the first tokens of the vocabulary."""
    words = philox(key, GROUP_CHOICE, 0, [group * n + i for i in range(n)], Purpose.CODE_PERM)
    dealt = sorted(range(n), key=lambda i: (int(words[0][i]), int(words[1][i])))
    return ((dealt[index] << CODE_BITS) + _offset(key, GROUP_CHOICE, group)) // n


def _reference(index: int, n: int, key: int, group: int) -> int:
    """((index + 1) / (n + 1) + u) mod 1: the published code. The gap across 1 is twice the others."""
    step = ((index + 1) << CODE_BITS) // (n + 1)
    return (step + _offset(key, GROUP_CHOICE, group)) % (1 << CODE_BITS)


def _sobol(index: int, n: int, key: int, group: int) -> int:
    """The Sobol sequence in one dimension, its bits flipped where those of u are set. The first m codes of any n are
    spread evenly."""
    gray = index ^ index >> 1
    return int(f"{gray:0{CODE_BITS}b}"[::-1], 2) ^ _offset(key, GROUP_CHOICE, group)


BOOKS: dict[str, Callable[[int, int, int, int], int]] = {
    "lattice": _lattice,
    "reference": _reference,
    "sobol": _sobol,
}


def _offset(key: int, choice: int, lane: int) -> int:
    """96 random bits."""
    words = philox(key, choice, 0, lane, Purpose.CODE_OFFSET)
    return int(words[0]) << 2 * WORD | int(words[1]) << WORD | int(words[2])
