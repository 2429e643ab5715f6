"""pass@k against every subset, in rationals; curves; the power law."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplers.contract import SamplerError
from voting.coverage import Count, coverage, log_spaced, pass_at_k, pass_at_k_exact
from voting.power_law import fit_power_law

SMALL = [(n, c, k) for n in range(1, 9) for c in range(n + 1) for k in range(1, n + 1)]


def test_it_is_the_mean_over_all_subsets() -> None:
    for n, c, k in SMALL:
        hits = [any(one < c for one in subset) for subset in combinations(range(n), k)]
        assert pass_at_k_exact(n, c, k) == Fraction(sum(hits), len(hits))


def test_it_is_unbiased_and_the_plug_in_is_not() -> None:
    for n in range(1, 8):
        for p in (Fraction(0), Fraction(1, 3), Fraction(3, 4), Fraction(1)):
            chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
            for k in range(1, n + 1):
                mean = sum(chance * pass_at_k_exact(n, c, k) for c, chance in enumerate(chances))
                assert mean == 1 - (1 - p) ** k
                plug_in = sum(chance * (1 - (1 - Fraction(c, n)) ** k) for c, chance in enumerate(chances))
                assert (plug_in == mean) == (k == 1 or p in (0, 1))


def test_its_ends() -> None:
    for n, c, k in SMALL:
        value = pass_at_k_exact(n, c, k)
        if k == 1:
            assert value == Fraction(c, n)
        if k == n:
            assert value == (c > 0)
        if n - c < k:
            assert value == 1
        if k < n:
            assert value <= pass_at_k_exact(n, c, k + 1)
        if c < n:
            assert value <= pass_at_k_exact(n, c + 1, k)


@given(st.integers(1, 3000), st.data())
def test_floats_agree_with_rationals(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_at_k(n, c, k) == pytest.approx(float(pass_at_k_exact(n, c, k)), rel=1e-12, abs=1e-12)


def test_floats_are_exact_at_the_ends() -> None:
    for n in (1, 7, 1000):
        assert pass_at_k(n, 0, n) == 0.0
        assert pass_at_k(n, n, 1) == pass_at_k(n, 1, n) == 1.0


@pytest.mark.parametrize(("n", "c", "k", "param"), [(5, 2, 0, "k"), (5, 2, 6, "k"), (5, 6, 1, "c"), (5, -1, 1, "c")])
def test_counts_that_cannot_be(n: int, c: int, k: int, param: str) -> None:
    for estimate in (pass_at_k, pass_at_k_exact):
        with pytest.raises(SamplerError) as caught:
            estimate(n, c, k)
        assert caught.value.param == param


@pytest.mark.parametrize(
    ("most", "ks"),
    [(1, [1]), (2, [1, 2]), (4, [1, 2, 4]), (10, [1, 2, 5, 10]), (64, [1, 2, 5, 10, 20, 50, 64])],
)
def test_log_spaced(most: int, ks: list[int]) -> None:
    assert log_spaced(most) == ks


def test_coverage_is_the_mean_with_an_interval_over_problems() -> None:
    counts = [Count(4, 0), Count(4, 1), Count(8, 8)] * 30
    point = coverage(counts, 2, seed=3)
    assert point.value == pytest.approx(0.5)
    assert point.interval is not None and point.interval.low < 0.5 < point.interval.high
    assert coverage(counts, 2, seed=3) == point
    assert coverage([Count(4, 2)] * 9, 2, seed=0).interval == pytest.approx((5 / 6, 5 / 6))
    assert coverage([Count(4, 2)], 2, seed=0).interval is None
    with pytest.raises(SamplerError):
        coverage(counts, 5, seed=0)


def test_the_interval_covers_the_mean_of_the_population() -> None:
    """Of 60 problems half are solved, the deviation of the mean is 0.0645; within six of them but for once in 10^8."""
    found = coverage([Count(2, 2 * (i % 2)) for i in range(60)], 1, seed=1).interval
    assert found is not None
    assert found.low == pytest.approx(0.5 - 1.96 * 0.0645, abs=0.04)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.0645, abs=0.04)


@pytest.mark.parametrize(("a", "b"), [(-2.0, -0.4), (-0.3, -0.9), (-5.0, -0.1)])
def test_the_fit_finds_a_power_law(a: float, b: float) -> None:
    ks = log_spaced(1000)
    found = fit_power_law(ks, [math.exp(a * k**b) for k in ks])
    assert found is not None
    assert (found.a, found.b) == (pytest.approx(a, rel=1e-6), pytest.approx(b, rel=1e-6))
    assert max(map(abs, found.residuals)) < 1e-9
    assert found.at(10_000) == pytest.approx(math.exp(a * 10_000**b), rel=1e-6)


def test_the_fit_minimises_squares_of_coverage_itself() -> None:
    ks = [1, 2, 5, 10, 20]
    values = [0.1, 0.32, 0.4, 0.66, 0.7]
    found = fit_power_law(ks, values)
    assert found is not None

    def cost(a: float, b: float) -> float:
        return math.fsum((c - math.exp(a * k**b)) ** 2 for k, c in zip(ks, values, strict=True))

    best = cost(found.a, found.b)
    assert best == pytest.approx(math.fsum(one**2 for one in found.residuals))
    for da in (-1e-3, 0, 1e-3):
        for db in (-1e-3, 0, 1e-3):
            assert cost(found.a + da, found.b + db) >= best


def test_points_at_the_ends_count_in_the_fit_and_not_for_its_start() -> None:
    assert fit_power_law([1, 2, 5, 10], [0.0, 0.4, 0.8, 1.0]) is None  # two points inside
    found = fit_power_law([1, 2, 5, 10, 20], [0.0, 0.4, 0.8, 0.9, 1.0])
    assert found is not None and len(found.residuals) == 5 and found.a < 0 and found.b < 0


def test_coverage_that_does_not_grow() -> None:
    found = fit_power_law([1, 2, 5], [0.5, 0.5, 0.5])
    assert found is not None
    assert found.at(50) == pytest.approx(0.5, abs=1e-6)


def test_it_is_not_extrapolated_far() -> None:
    found = fit_power_law([1, 2, 5], [0.2, 0.4, 0.6])
    assert found is not None and 0.6 < found.at(50) < 1
    for k in (0, 51):
        with pytest.raises(ValueError, match="at most"):
            found.at(k)
