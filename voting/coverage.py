"""How often at least one of k samples is right, and how that grows (Large Language Monkeys, arXiv 2407.21787).

Knows counts only: n independent samples of a problem, c of them right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from samplers.contract import SamplerError
from voting.intervals import Interval, interval


class Count(NamedTuple):
    """The samples of one problem."""

    n: int
    c: int  # right ones


class Point(NamedTuple):
    """Coverage at k: the mean of pass@k over problems."""

    k: int
    value: float
    interval: Interval | None  # over problems


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of the n samples, drawn without replacement, hold a right one; the unbiased estimate of
    1 - (1 - p)^k. As a product of the fewest factors, so that nothing overflows.

    Raises SamplerError for k outside 1..n or c outside 0..n.
    """
    _check(n, c, k)
    if n - c < k:
        return 1.0
    few, many = sorted((c, k))
    return 1.0 - math.prod(1.0 - many / i for i in range(n - few + 1, n + 1))


def pass_at_k_exact(n: int, c: int, k: int) -> Fraction:
    """1 - C(n - c, k) / C(n, k). Raises SamplerError as `pass_at_k`."""
    _check(n, c, k)
    return 1 - Fraction(math.comb(n - c, k), math.comb(n, k))


def log_spaced(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... up to `most`, and `most` itself."""
    steps = (factor * 10**power for power in range(len(str(most))) for factor in (1, 2, 5))
    return [*(k for k in steps if k < most), most]


def coverage(counts: Sequence[Count], k: int, seed: int) -> Point:
    """Raises SamplerError for a k that some problem has too few samples for."""
    values = [pass_at_k(*count, k) for count in counts]
    return Point(k, math.fsum(values) / len(values), interval(_mean, values, seed=seed))


def _mean(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    return float(values.mean())


def _check(n: int, c: int, k: int) -> None:
    if not 0 <= c <= n:
        raise SamplerError(f"'c' must be in 0..{n}, got {c}", "c")
    if not 1 <= k <= n:
        raise SamplerError(f"'k' must be in 1..{n}, got {k}", "k")
