"""How far a figure would move with other problems: percentile bootstrap over problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RESAMPLES = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    low: float
    high: float


def interval(statistic: Callable[..., float], *columns: npt.ArrayLike, seed: int) -> Interval | None:
    """Where `statistic` lies in all but 5 percent of resamples of the problems. Those for which it is not a number are
    left out; None with fewer than two problems, or if none is left.

    columns: [N] each, resampled together, the arguments of `statistic`.
    """
    data = [np.asarray(column, np.float64) for column in columns]
    size = len(data[0])
    if size < 2:
        return None
    rng = np.random.default_rng(seed)
    chosen = (rng.integers(0, size, size) for _ in range(RESAMPLES))
    drawn = np.array([statistic(*(column[places] for column in data)) for places in chosen])
    finite: Floats = drawn[np.isfinite(drawn)]
    if not len(finite):
        return None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
