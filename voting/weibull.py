"""Mixture of two Weibull distributions, fitted to path weights: which paths belong to the improbable half.

The model and the optimiser's settings are those of RPC (arXiv 2510.15444). Knows nothing about samples. Everything is
float64.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, minimize
from scipy.special import expit, gammaln
from threadpoolctl import ThreadpoolController

Floats = npt.NDArray[np.float64]

START = (0.5, 1.0, 1.0, 1.5, 2.0)  # w, k1, s1, k2, s2
LOWEST_SHARE, HIGHEST_SHARE, LEAST = 0.2, 0.8, 0.01  # bounds of w; of shapes and scales
SPREAD = 1e-9  # weights closer together than this have nothing to be told apart by
_AT_BOUND = 1e-6
_fitting = threading.Lock()  # the limit on threads is the process's


class Component(NamedTuple):
    """One Weibull distribution: (k / s) (x / s)^(k - 1) exp(-(x / s)^k)."""

    share: float  # of the mixture
    shape: float  # k
    scale: float  # s

    def log_density(self, x: Floats) -> Floats:
        """ln of share times density. x > 0."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            logs = self.shape * (np.log(x) - math.log(self.scale))
            density: Floats = math.log(self.share * self.shape) - np.log(x) + logs - np.exp(logs)
        return density

    @property
    def log_mean(self) -> float:
        return math.log(self.scale) + float(gammaln(1 + 1 / self.shape))


class Mixture(NamedTuple):
    """The component with the larger mean, and the other."""

    high: Component
    low: Component

    @classmethod
    def of(cls, one: Component, other: Component) -> Mixture:
        return cls(one, other) if one.log_mean >= other.log_mean else cls(other, one)

    def probability_high(self, x: Sequence[float]) -> Floats:
        """That each x comes from the high component; NaN where neither can have given it."""
        at = np.asarray(x, np.float64)
        with np.errstate(invalid="ignore"):
            probability: Floats = expit(self.high.log_density(at) - self.low.log_density(at))
        return probability


class Fit(NamedTuple):
    """`status` is 'ok', or why the mixture says nothing: 'too_few', 'degenerate', 'nonfinite', 'not_converged'."""

    status: str
    mixture: Mixture | None = None  # None: nothing was fitted
    nll: float = math.nan  # -sum of ln f; not finite where the fit is not

    @property
    def flags(self) -> tuple[str, ...]:
        """Which bounds the parameters have run to."""
        if self.mixture is None:
            return ()
        share = self.mixture.high.share
        shapes = min(self.mixture.high.shape, self.mixture.low.shape)
        at_bound = {
            "w_at_bound": min(share - LOWEST_SHARE, HIGHEST_SHARE - share) < _AT_BOUND,
            "shape_at_bound": shapes - LEAST < _AT_BOUND,
        }
        return tuple(flag for flag, holds in at_bound.items() if holds)


def fit(x: Sequence[float], fewest: int) -> Fit:
    """Maximum likelihood by L-BFGS-B with numerical gradients; x in (0, 1], in any order. Never raises.

    What has been found is returned even where `status` is not 'ok', if there is anything at all.
    """
    if len(x) < fewest:
        return Fit("too_few")
    data = np.sort(np.asarray(x, np.float64))  # sums of floats, and so the path of the optimiser, depend on the order
    if not (np.isfinite(data).all() and data[0] > 0):
        return Fit("nonfinite")

    def cost(theta: Floats) -> float:
        """Not in logarithms: where densities overflow the optimiser turns back, and that decides which of several
        optima it finds. Published results are those of this path."""
        w, k1, s1, k2, s2 = theta
        return -float(np.log(w * _density(data, k1, s1) + (1 - w) * _density(data, k2, s2)).sum())

    with np.errstate(all="ignore"), _single_threaded():
        found = minimize(cost, START, method="L-BFGS-B", bounds=[(LOWEST_SHARE, HIGHEST_SHARE)] + [(LEAST, None)] * 4)
    if not np.isfinite(found.x).all():
        return Fit("nonfinite")
    w, k1, s1, k2, s2 = map(float, found.x)
    mixture, nll = Mixture.of(Component(w, k1, s1), Component(1 - w, k2, s2)), float(found.fun)
    if data[-1] - data[0] < SPREAD:
        return Fit("degenerate", mixture, nll)
    if not math.isfinite(nll):
        return Fit("nonfinite", mixture, nll)
    return Fit("ok" if found.success else "not_converged", mixture, nll)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """The optimiser's matrices are tiny: threads that wait for one another cost several times what they compute."""
    with _fitting, _pools().limit(limits=1, user_api="blas"):
        yield


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()


def below(mixture: Mixture, x: Sequence[float], floor: float) -> list[bool]:
    """Which x are rather of the low component and under the floor. NaN is neither."""
    return [bool(high < 0.5 and value < floor) for high, value in zip(mixture.probability_high(x), x, strict=True)]


def mean(x: Sequence[float]) -> float:
    """Correctly rounded, so that it never exceeds the largest x."""
    return statistics.mean(map(float, x))


def is_separated(found: Fit, x: Sequence[float]) -> bool:
    """Whether two components explain x better than one, by the Bayesian information criterion (5 against 2)."""
    return 5 * math.log(len(x)) + 2 * found.nll < 2 * math.log(len(x)) + 2 * single_nll(x)


def single_nll(x: Sequence[float]) -> float:
    """-sum of ln f of the one Weibull distribution that is most likely. x positive, not all equal.

    Its shape is the root of sum x^k ln x / sum x^k - 1 / k - mean ln x, which increases in k; s^k is the mean of x^k.
    """
    logs = np.log(np.asarray(x, np.float64))
    top = logs.max()
    shifted = logs - top  # <= 0, so that no power overflows

    def slope(k: float) -> float:
        powers = np.exp(k * shifted)
        return float((powers * shifted).sum() / powers.sum() - 1 / k - shifted.mean())

    upper = 1.0
    while slope(upper) < 0:
        upper *= 2
    lower = upper
    while slope(lower) > 0:
        lower /= 2
    shape = float(brentq(slope, lower, upper))
    scale = math.exp(top + math.log(np.exp(shape * shifted).mean()) / shape)
    return -float(Component(1.0, shape, scale).log_density(np.exp(logs)).sum())


def _density(x: Floats, shape: float, scale: float) -> Floats:
    ratio = x / scale
    density: Floats = shape / scale * ratio ** (shape - 1) * np.exp(-(ratio**shape))
    return density
