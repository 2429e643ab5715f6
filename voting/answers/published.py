"""Numbers as the evaluator of RPC (arXiv 2510.15444) compares them: up to a factor of 100, to 1e-3.

That is no equivalence, so its transitive closure is taken: 0.5, 50 and 5000 are one. For published tables only.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from fractions import Fraction

TOLERANCE = Fraction(1, 1000)  # absolute, at the scale of the one compared
SCALES = (Fraction(1, 100), Fraction(1), Fraction(100))


def closure(numbers: Sequence[Fraction]) -> list[int]:
    """A label for each number; those that are one have the same."""
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    values = [numbers[place] for place in order]
    parents = list(range(len(values)))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = place = parents[parents[place]]
        return place

    for place, value in enumerate(values):
        for scale in SCALES:
            first = bisect_left(values, scale * value - TOLERANCE)
            for other in range(first, bisect_right(values, scale * value + TOLERANCE)):
                parents[root(other)] = root(place)
    labels = [0] * len(values)
    for place, original in enumerate(order):
        labels[original] = root(place)
    return labels
