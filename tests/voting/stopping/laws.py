"""Exact chances of what stopping rules do, over every sequence of answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import product

from voting.stopping.contract import Label
from voting.stopping.watch import Watch

HALF = Fraction(1, 2)
EVEN: Mapping[Label, Fraction] = {"a": HALF, "b": HALF}


def by_counts(
    chances: tuple[Fraction, Fraction], horizon: int, fires: Callable[[int, int], bool]
) -> list[tuple[int, int, Fraction]]:
    """Where walks over counts (a, b) are when `fires` first holds: (a, b, chance). Steps that do nothing have the rest
    of the chance."""
    p, q = chances
    alive, ended = {(0, 0): Fraction(1)}, []
    for _ in range(horizon):
        after: dict[tuple[int, int], Fraction] = {}
        for (a, b), mass in alive.items():
            for place, chance in (((a + 1, b), p), ((a, b + 1), q), ((a, b), 1 - p - q)):
                if chance:
                    after[place] = after.get(place, Fraction(0)) + mass * chance
        ended += [(*place, mass) for place, mass in after.items() if fires(*place)]
        alive = {place: mass for place, mass in after.items() if not fires(*place)}
    return ended


def outcomes(
    chances: Mapping[Label, Fraction], length: int, start: Callable[[], Watch]
) -> list[tuple[Watch, Fraction]]:
    """The rule's own objects after every sequence of this length, each with its chance."""
    found = []
    for labels in product(chances, repeat=length):
        watch, chance = start(), Fraction(1)
        for label in labels:
            chance *= chances[label]
            if not watch.fired:
                watch.feed(label)
        found.append((watch, chance))
    return found
