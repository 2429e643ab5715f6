"""Exact numbers about two counts a and b: lower halves of rows of Pascal's triangle.

Rationals, since floats lose what decides on large counts; every pair is computed once.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import comb


@lru_cache(maxsize=1 << 16)
def half_tail(a: int, b: int) -> Fraction:
    """P(p > 1/2) for p ~ Beta(a + 1, b + 1): the sum over j <= a of C(a + b + 1, j), divided by 2^(a + b + 1)."""
    return Fraction(_lower(a, b), 1 << (a + b + 1))


@lru_cache(maxsize=1 << 16)
def e_value(a: int, b: int) -> Fraction:
    """The integral over x in [0, 1] of (1 + x)^a (1 - x)^b: a! b! / (a + b + 1)! times the same sum."""
    return Fraction(_lower(a, b), (a + b + 1) * comb(a + b, a))


def _lower(a: int, b: int) -> int:
    """Sum over j <= a of C(a + b + 1, j)."""
    n, term, total = a + b + 1, 1, 0
    for j in range(a + 1):
        total += term
        term = term * (n - j) // (j + 1)
    return total
