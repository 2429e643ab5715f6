"""Means over problems, and their spread over repeats."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def mean(values: npt.NDArray[np.float64]) -> float:
    """NaN of nothing. The order does not matter."""
    return math.fsum(values) / len(values) if len(values) else math.nan


def over_repeats(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """`name` and `name_std`: mean and population standard deviation of the values that are numbers, null if none is.
    The deviation of equal values is exactly 0."""
    finite = [float(value) for value in values if math.isfinite(value)]
    if not finite:
        return {name: None, f"{name}_std": None}
    return {name: statistics.fmean(finite), f"{name}_std": statistics.pstdev(finite)}
