"""The Weibull mixture: reference fits, densities against scipy's, what a fit says of itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import OptimizeResult
from scipy.stats import weibull_min

from voting import weibull
from voting.weibull import Component, Fit, Mixture, below, fit, is_separated, mean, single_nll

FIRST = [0.91, 0.92, 0.90, 0.93, 0.92, 0.70, 0.72, 0.68, 0.71, 0.69]
SECOND = [0.93, 0.92, 0.91, 0.94, 0.90, 0.92, 0.93, 0.91, 0.62, 0.60, 0.58, 0.61]


def hump(seed: int, count: int = 48) -> list[float]:
    """One group of path weights."""
    return np.exp(-np.random.default_rng(seed).gamma(20, 0.01, count)).tolist()


@pytest.mark.parametrize(
    ("x", "w", "high", "low", "nll", "pruned"),
    [
        (FIRST, 0.50, (105.3, 0.921), (55.5, 0.707), -23.04, {5, 6, 7, 8, 9}),
        (SECOND, 0.788, (33.7, 0.928), (4.96, 0.891), -12.21, {8, 9, 10, 11}),
    ],
)
def test_reference_fits(
    x: list[float], w: float, high: tuple[float, float], low: tuple[float, float], nll: float, pruned: set[int]
) -> None:
    found = fit(x, 8)
    assert found.status == "ok" and found.flags == ()
    assert found.mixture is not None
    assert found.mixture.high == pytest.approx((w, *high), rel=1e-2)
    assert found.mixture.low == pytest.approx((1 - w, *low), rel=1e-2)
    assert found.nll == pytest.approx(nll, rel=1e-3)
    assert {i for i, is_low in enumerate(below(found.mixture, x, mean(x))) if is_low} == pruned


@pytest.mark.parametrize("x", [FIRST, SECOND, hump(1)])
def test_the_order_of_the_data_is_irrelevant(x: list[float]) -> None:
    assert fit(x[::-1], 8) == fit(x, 8)
    assert mean(x[::-1]) == mean(x)


@pytest.mark.parametrize("shape", [0.01, 0.5, 1.0, 4.96, 105.3])
@pytest.mark.parametrize("scale", [0.01, 0.7, 2.0])
def test_densities_and_means(shape: float, scale: float) -> None:
    one = Component(0.3, shape, scale)
    x = np.array([0.01, 0.3, 0.69, 0.93, 1.0])
    expected = math.log(0.3) + weibull_min.logpdf(x, shape, scale=scale)
    assert one.log_density(x) == pytest.approx(expected, rel=1e-9)
    if shape > 0.1:  # beyond, the mean is a gamma function's 100!
        assert math.exp(one.log_mean) == pytest.approx(weibull_min.mean(shape, scale=scale), rel=1e-9)


def test_the_likelihood_is_that_of_the_parameters() -> None:
    found = fit(SECOND, 8)
    assert found.mixture is not None
    parts = [np.exp(part.log_density(np.array(SECOND))) for part in found.mixture]
    assert found.nll == pytest.approx(-np.log(sum(parts)).sum(), rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_components_have_no_order(seed: int) -> None:
    noise = np.random.default_rng(seed)
    w, k1, s1, k2, s2 = noise.uniform(0.2, 0.8), *noise.uniform(0.3, 20, 4)
    one, other = Component(w, k1, s1), Component(1 - w, k2, s2)
    x = noise.uniform(0.01, 1, 50)
    assert Mixture.of(one, other) == Mixture.of(other, one)
    assert below(Mixture.of(one, other), x, 0.5) == below(Mixture.of(other, one), x, 0.5)
    assert Mixture.of(one, other).high.log_mean >= Mixture.of(one, other).low.log_mean


def test_below_is_strict_on_both_sides() -> None:
    twin = Component(0.5, 2.0, 0.5)
    assert below(Mixture(twin, twin), [0.1, 0.9], 1.0) == [False, False]  # exactly one half
    far = Mixture(Component(0.5, 50.0, 0.9), Component(0.5, 5.0, 0.3))
    assert below(far, [0.1, 0.3, 0.5], 0.3) == [True, False, False]
    assert below(far, [math.nan, 0.1], math.nan) == [False, False]


def test_too_few() -> None:
    assert fit(FIRST[:7], 8) == Fit("too_few", None, pytest.approx(math.nan, nan_ok=True))
    assert fit(FIRST[:8], 8).status == "ok"
    assert fit([0.5], 1).status == "degenerate"
    assert fit(FIRST[:7], 8).flags == ()


@pytest.mark.parametrize("value", [1.0, 0.5, 1e-200])
def test_weights_without_spread(value: float) -> None:
    assert fit([value] * 12, 8).status == "degenerate"
    assert fit([value] * 6 + [value + 0.9e-9] * 6, 8).status == "degenerate"
    assert fit([0.5] * 6 + [0.5 + 1.1e-9] * 6, 8).status != "degenerate"


@pytest.mark.parametrize("bad", [0.0, -0.1, math.nan, math.inf])
def test_data_without_a_density(bad: float) -> None:
    assert fit([*FIRST, bad], 8).status == "nonfinite"


def test_likelihoods_that_diverge() -> None:
    """Weights so close together that the optimiser drives the shapes beyond what float64 can take."""
    fits = [fit((0.5 + 1e-8 * np.random.default_rng(seed).random(55)).tolist(), 8) for seed in range(20)]
    failed = [found for found in fits if not math.isfinite(found.nll)]
    assert failed and all(found.status == "nonfinite" for found in failed)


@pytest.mark.parametrize(
    ("result", "status"),
    [
        ({"success": False}, "not_converged"),
        ({"fun": math.inf}, "nonfinite"),
        ({"x": np.array([0.5, math.nan, 1, 1, 1])}, "nonfinite"),
        ({"success": False, "fun": math.nan}, "nonfinite"),
        ({}, "ok"),
    ],
)
def test_what_the_optimiser_says(monkeypatch: pytest.MonkeyPatch, result: dict[str, object], status: str) -> None:
    usual = {"x": np.array([0.5, 5.0, 0.9, 5.0, 0.4]), "fun": -1.0, "success": True}
    monkeypatch.setattr(weibull, "minimize", lambda *_, **__: OptimizeResult(usual | result))
    found = fit(FIRST, 8)
    assert found.status == status
    assert (found.mixture is None) == ("x" in result)


@pytest.mark.parametrize(
    ("share", "shape", "flags"),
    [
        (0.2, 5.0, ("w_at_bound",)),
        (0.8, 0.01, ("w_at_bound", "shape_at_bound")),
        (0.5, 0.01, ("shape_at_bound",)),
        (0.799, 0.011, ()),
    ],
)
def test_flags(share: float, shape: float, flags: tuple[str, ...]) -> None:
    one, other = Component(share, shape, 0.5), Component(1 - share, 3.0, 0.4)
    assert Fit("ok", Mixture.of(one, other)).flags == flags


def test_one_hump_is_no_mixture() -> None:
    """Yet the mixture often runs to a bound and finds something to prune: pruning is never off by itself."""
    fits = {seed: fit(hump(seed), 8) for seed in range(20)}
    assert all(found.status == "ok" for found in fits.values())
    at_bound = [seed for seed, found in fits.items() if "w_at_bound" in found.flags]
    assert len(at_bound) > 10
    assert any(any(below(found.mixture, hump(seed), mean(hump(seed)))) for seed, found in fits.items() if found.mixture)
    assert sum(is_separated(found, hump(seed)) for seed, found in fits.items()) <= 2


def test_two_humps_are() -> None:
    assert is_separated(fit(FIRST, 8), FIRST)


@pytest.mark.parametrize("seed", range(4))
def test_one_distribution_against_scipy(seed: int) -> None:
    x = hump(seed)
    shape, _, scale = weibull_min.fit(x, floc=0)
    expected = -weibull_min.logpdf(x, shape, scale=scale).sum()
    assert single_nll(x) <= expected + 1e-6
    assert single_nll(x) == pytest.approx(expected, rel=1e-4)


def test_one_distribution_of_tiny_and_of_close_numbers() -> None:
    scaled = [1e-200 * value for value in FIRST]
    assert single_nll(scaled) == pytest.approx(single_nll(FIRST) + len(FIRST) * math.log(1e-200), rel=1e-9)
    assert math.isfinite(single_nll([0.5, 0.5 + 1e-8, 0.5 + 2e-8]))


def test_the_mean_never_exceeds_the_largest() -> None:
    for value in (0.1, 0.7, 1 / 3, 1e-300):
        for count in range(1, 20):
            assert mean([value] * count) == value
