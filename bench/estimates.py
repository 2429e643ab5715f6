"""Figures with intervals: bootstrap over items, deviation of repeated draws, two curves compared at equal abscissa.

Knows nothing about texts. An item (a prompt, a problem) is what is resampled; everything measured on one item stays
together, so draws of one prompt are never mistaken for independent prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
RESAMPLES = 2000
LEVEL = 0.95
GRID = 33  # points of the common range at which two curves are compared


@dataclass(frozen=True)
class Figure:
    """A value and its percentile-bootstrap interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int, scale: float = 1.0) -> str:
        if not np.isfinite(self.value):
            return "-"
        value, low, high = (f"{scale * one:.{digits}f}" for one in (self.value, self.low, self.high))
        return f"{value} ({low}..{high})"

    def short(self, digits: int, scale: float = 1.0) -> str:
        """With half the interval's width instead of its ends."""
        if not np.isfinite(self.value):
            return "-"
        return f"{scale * self.value:.{digits}f} ±{scale * (self.high - self.low) / 2:.{digits}f}"

    def as_json(self) -> dict[str, float | None]:
        """JSON knows no NaN."""
        return {name: None if not np.isfinite(v) else round(v, 6) for name, v in vars(self).items()}


def verdict(figure: Figure, below: float = float("inf"), above: float = -float("inf")) -> str:
    """Whether an interval lies below a value, or above one."""
    if figure.high < below and figure.low > above:
        return "reproduced"
    return "contradicted" if figure.low > below or figure.high < above else "undecided"


def bootstrap(statistic: Callable[[npt.NDArray[np.int64]], float], items: int, seed: int) -> Figure:
    """`statistic` of all items and the interval of it over resampled ones; it gets indices, repeated ones included.

    Resamples for which it is not defined (NaN) are left out.
    """
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(0, items, items)) for _ in range(RESAMPLES)])
    values = values[np.isfinite(values)]
    whole = statistic(np.arange(items))
    if not len(values):
        return Figure(whole, float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Figure(whole, float(low), float(high))


def mean(values: Array, seed: int) -> Figure:
    """Mean over items of values [items]; NaN marks an item without a value."""

    def of(chosen: npt.NDArray[np.int64]) -> float:
        taken = values[chosen]
        taken = taken[np.isfinite(taken)]
        return float(taken.mean()) if len(taken) else float("nan")

    return bootstrap(of, len(values), seed)


def deviation(estimates: Array) -> float:
    """How much one item's estimate varies between draws. estimates: [items, draws] -> root mean square over items of
    the sample standard deviation (n - 1 below the line, so that few draws are not taken for little variance)."""
    return float(np.sqrt(estimates.var(1, ddof=1).mean()))


def deviation_figure(estimates: Array, seed: int) -> Figure:
    return bootstrap(lambda chosen: deviation(estimates[chosen]), len(estimates), seed)


def deviation_ratio(estimates: Array, base: Array, seed: int) -> Figure:
    """`deviation` of one method over that of another on the same items, resampled together."""

    def ratio(chosen: npt.NDArray[np.int64]) -> float:
        below = deviation(base[chosen])
        return deviation(estimates[chosen]) / below if below > 0 else float("nan")

    return bootstrap(ratio, len(base), seed)


@dataclass(frozen=True)
class Gap:
    """Mean difference of two curves over the range of x that both cover."""

    difference: Figure
    low: float  # the range
    high: float


def curve(points_x: Array, points_y: Array, at: Array) -> Array:
    """Straight lines between points sorted by x; NaN outside of them, for nothing is known there."""
    order = np.argsort(points_x, kind="stable")
    return np.interp(at, points_x[order], points_y[order], left=np.nan, right=np.nan)


def common_range(first_x: Array, second_x: Array) -> tuple[float, float]:
    """Where both curves are known; empty when low >= high."""
    return float(max(first_x.min(), second_x.min())), float(min(first_x.max(), second_x.max()))


def gap_at_equal_x(first: tuple[Array, Array], second: tuple[Array, Array], seed: int) -> Gap | None:
    """First minus second curve at equal x, averaged evenly over the common range; None where there is none.

    Each is (x, y), both [settings, items]: a curve's points are the means over items. Items are resampled for both
    together, and the common range is found anew for each resample.
    """

    def points(one: tuple[Array, Array], chosen: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        return one[0][:, chosen].mean(1), one[1][:, chosen].mean(1)

    def difference(chosen: npt.NDArray[np.int64]) -> float:
        (x1, y1), (x2, y2) = points(first, chosen), points(second, chosen)
        low, high = common_range(x1, x2)
        if low >= high:
            return float("nan")
        at = np.linspace(low, high, GRID)
        return float((curve(x1, y1, at) - curve(x2, y2, at)).mean())

    everything = np.arange(first[0].shape[1])
    low, high = common_range(points(first, everything)[0], points(second, everything)[0])
    if low >= high:
        return None
    return Gap(bootstrap(difference, len(everything), seed), low, high)
