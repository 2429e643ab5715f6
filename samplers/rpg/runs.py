"""How long the end of a sequence of symbols has been repeating with each period."""

from __future__ import annotations

from typing import NamedTuple

from samplers.rpg.grammar import BREAK, Symbol


class Repetition(NamedTuple):
    """The end of the sequence is a pattern that follows itself `copies` times."""

    period: int
    copies: int
    following: Symbol  # what comes next if it goes on
    complete: bool  # the last copy is whole, and `following` begins the pattern


class Runs(NamedTuple):
    """r_1..r_m without equal neighbours, as far as periods up to D can see. Never changed.

    `lengths[d - 1]` is L_d, the longest run with r_{m-i} = r_{m-i-d}.
    """

    recent: tuple[Symbol, ...]  # r_m, r_{m-1}, ... at most D
    lengths: tuple[int, ...]  # D of them

    @staticmethod
    def empty(max_period: int) -> Runs:
        return Runs((), (0,) * max_period)

    def then(self, symbol: Symbol) -> Runs:
        """The sequence with one more symbol, in O(D)."""
        recent, lengths = self
        if symbol is BREAK:
            return Runs.empty(len(lengths))
        if recent and recent[0] == symbol:
            return self
        grown = tuple([length + 1 if old == symbol else 0 for old, length in zip(recent, lengths, strict=False)])
        return Runs((symbol, *recent)[: len(lengths)], grown + lengths[len(grown) :])

    def repetition(self) -> Repetition | None:
        """That of the smallest period with a copy, if there is any (arXiv 2505.10402, section 4)."""
        for period, length in enumerate(self.lengths, 1):
            if length >= period:
                return Repetition(period, length // period, self.recent[period - 1], length % period == 0)
        return None
