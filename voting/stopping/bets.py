"""Bets that an answer is more probable than any other: e-values that hold at every look.

For an answer x and a rival y each sample multiplies a stake by 1 + s v if it says x, by 1 - s v if it says y, and by 1
otherwise, v its weight. Where E[v 1{x}] <= E[v 1{y}] this is a non-negative supermartingale for every s in [0, 1], and
so is its mean over s: it exceeds 1 / alpha at any time with a probability of alpha at most (Ville). Against several
rivals the smallest counts. After CITE (arXiv 2605.05873); the construction is ours. Knows nothing about who is bet on,
and that must not depend on the samples added here.
"""

from __future__ import annotations

from collections.abc import Hashable
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt

from voting.stopping.halves import e_value

Floats = npt.NDArray[np.float64]
NODES = 32  # exact for polynomials of degree 63; valid for any, being a mean over a fixed set of s


class Bets(Protocol):
    """Samples with an answer; those without multiply every stake by 1 and are not added."""

    def add(self, label: Hashable, weight: float) -> None: ...

    def e(self, target: Hashable) -> Fraction | float:
        """The smallest e-value of the target against a rival; one that nobody has named is a rival, too."""
        ...


class CountBets:
    """All samples weigh 1, s is uniform: E depends on counts only and is exact."""

    def __init__(self) -> None:
        self._counts: dict[Hashable, int] = {}

    def add(self, label: Hashable, weight: float) -> None:
        self._counts[label] = self._counts.get(label, 0) + 1

    def e(self, target: Hashable) -> Fraction:
        rival = max((count for label, count in self._counts.items() if label != target), default=0)
        return e_value(self._counts.get(target, 0), rival)


class WeightedBets:
    """Weights in [0, 1]; s has the nodes and weights of Gauss-Legendre quadrature."""

    def __init__(self) -> None:
        points, weights = np.polynomial.legendre.leggauss(NODES)
        self._s: Floats = (points + 1) / 2  # inside of (0, 1)
        self._log_mass: Floats = np.log(weights / 2)
        self._none: Floats = np.zeros(NODES)
        self._for: dict[Hashable, Floats] = {}  # label -> [NODES], sum of ln(1 + s v)
        self._against: dict[Hashable, Floats] = {}  # sum of ln(1 - s v)

    def add(self, label: Hashable, weight: float) -> None:
        """Raises ValueError for a weight outside of [0, 1]."""
        if not 0 <= weight <= 1:
            raise ValueError(f"a weight must be in [0, 1], got {weight}")
        self._for[label] = self._for.get(label, self._none) + np.log1p(self._s * weight)
        self._against[label] = self._against.get(label, self._none) + np.log1p(-self._s * weight)

    def e(self, target: Hashable) -> float:
        rivals = [logs for label, logs in self._against.items() if label != target]
        logs = self._log_mass + self._for.get(target, self._none) + np.array([self._none, *rivals])
        with np.errstate(over="ignore"):  # infinite is as good as the largest float
            return float(np.exp(np.logaddexp.reduce(logs, axis=1)).min())
