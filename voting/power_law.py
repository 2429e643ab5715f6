"""Coverage as an exponentiated power law exp(a k^b), a and b negative (Large Language Monkeys, arXiv 2407.21787).

Failure of one problem falls exponentially in k; the law of many is theirs together, and no law of nature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

Floats = npt.NDArray[np.float64]

FEWEST = 3  # points strictly between 0 and 1
FURTHEST = 10  # times the largest k that was measured
_LARGEST = -1e-12  # of a and b, which are negative


class PowerLaw(NamedTuple):
    """`residuals`: measured minus fitted coverage at each k."""

    a: float
    b: float
    ks: tuple[int, ...]
    residuals: tuple[float, ...]

    def at(self, k: int) -> float:
        """Raises ValueError further than `FURTHEST` times beyond what was measured, where nobody has looked."""
        if not 1 <= k <= FURTHEST * max(self.ks):
            raise ValueError(f"coverage is extrapolated to {FURTHEST * max(self.ks)} samples at most, got {k}")
        return float(_law((self.a, self.b), np.array([k], np.float64))[0])


def fit_power_law(ks: Sequence[int], values: Sequence[float]) -> PowerLaw | None:
    """By least squares on coverage itself, from where the straight line ln(-ln c) = ln(-a) + b ln k begins. None with
    fewer than three points between 0 and 1, or if the optimiser fails."""
    k, c = np.asarray(ks, np.float64), np.asarray(values, np.float64)
    inner = (c > 0) & (c < 1)
    if inner.sum() < FEWEST:
        return None
    slope, height = np.polyfit(np.log(k[inner]), np.log(-np.log(c[inner])), 1)
    start = np.minimum([-np.exp(height), slope], 2 * _LARGEST)

    def residuals(parameters: Floats) -> Floats:
        return c - _law(parameters, k)

    found = least_squares(
        residuals, start, bounds=(-np.inf, _LARGEST), x_scale="jac", xtol=1e-12, ftol=1e-12, gtol=1e-12
    )
    if not found.success:
        return None
    return PowerLaw(float(found.x[0]), float(found.x[1]), tuple(ks), tuple(map(float, residuals(found.x))))


def _law(parameters: npt.ArrayLike, k: Floats) -> Floats:
    a, b = np.asarray(parameters, np.float64)
    law: Floats = np.exp(a * k**b)
    return law
