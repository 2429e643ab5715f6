"""Intervals, deviations and comparisons at equal abscissa, on data whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.estimates import (
    Figure,
    common_range,
    curve,
    deviation,
    deviation_figure,
    deviation_ratio,
    gap_at_equal_x,
    mean,
    verdict,
)


def test_bootstrap_interval_of_a_mean_has_the_normal_width() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    figure = mean(values, seed=1)
    assert figure.value == pytest.approx(values.mean())
    error = values.std() / math.sqrt(400)
    assert figure.low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert figure.high == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)


def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    figures = [mean(rng.normal(0.0, 1.0, 40), seed=i) for i in range(100)]
    assert 88 <= sum(one.low <= 0.0 <= one.high for one in figures) <= 99


def test_bootstrap_repeats_with_its_seed() -> None:
    values = np.arange(10.0)
    assert mean(values, seed=1) == mean(values, seed=1) != mean(values, seed=2)


def test_equal_items_have_an_interval_without_width() -> None:
    assert mean(np.full(5, 0.25), seed=1) == Figure(0.25, 0.25, 0.25)


def test_undefined_items_are_left_out() -> None:
    assert mean(np.array([1.0, np.nan, 1.0]), seed=1) == Figure(1.0, 1.0, 1.0)
    nothing = mean(np.array([np.nan]), seed=1)
    assert math.isnan(nothing.value)
    assert nothing.text(2) == nothing.short(2) == "-"
    assert nothing.as_json() == {"value": None, "low": None, "high": None}


def test_figures_are_written_with_their_interval() -> None:
    assert Figure(0.5, 0.4, 0.7).text(1, scale=100) == "50.0 (40.0..70.0)"
    assert Figure(0.5, 0.4, 0.7).short(2) == "0.50 ±0.15"


def test_deviation_is_within_items_not_between_them() -> None:
    assert deviation(np.array([[1.0, 1.0], [9.0, 9.0]])) == 0.0
    assert deviation(np.array([[0.0, 2.0], [5.0, 5.0]])) == pytest.approx(1.0)  # variances 2 and 0, mean 1


def test_deviation_of_independent_samples_is_that_of_the_binomial() -> None:
    draws = np.random.default_rng(1).binomial(8, 0.3, (400, 12)) / 8
    figure = deviation_figure(draws, seed=1)
    assert figure.low < math.sqrt(0.3 * 0.7 / 8) < figure.high


def test_deviation_ratio_of_known_scales() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(0, 1, (300, 8))
    figure = deviation_ratio(0.5 * rng.normal(0, 1, (300, 8)), base, seed=1)
    assert figure.low < 0.5 < figure.high < 0.6
    assert deviation_ratio(base, base, seed=1) == Figure(1.0, 1.0, 1.0)


def test_ratio_to_no_deviation_is_not_defined() -> None:
    assert math.isnan(deviation_ratio(np.ones((3, 2)), np.ones((3, 2)), seed=1).value)


def test_curve_joins_points_in_any_order_and_ends_with_them() -> None:
    at = curve(np.array([3.0, 1.0]), np.array([30.0, 10.0]), np.array([0.9, 1.0, 2.0, 3.1]))
    assert at[1:3].tolist() == [10.0, 20.0]
    assert np.isnan(at[[0, 3]]).all()


def test_common_range() -> None:
    assert common_range(np.array([1.0, 4.0]), np.array([3.0, 9.0])) == (3.0, 4.0)


def _family(xs: list[float], line: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """y = x + line; 30 items with noise around both."""
    rng = np.random.default_rng(int(10 * line) + 5)
    x = np.array(xs)[:, None] + rng.normal(0, noise, (len(xs), 30))
    return x, x + line


def test_gap_at_equal_x_is_found_although_no_two_settings_share_an_x() -> None:
    gap = gap_at_equal_x(_family([1.0, 2.5, 4.0], -0.3, 0.05), _family([0.5, 2.0, 3.5], 0.0, 0.05), seed=1)
    assert gap is not None
    assert gap.difference.value == pytest.approx(-0.3)
    assert gap.difference.high < -0.25
    assert gap.low == pytest.approx(1.0, abs=0.05)
    assert gap.high == pytest.approx(3.5, abs=0.05)


def test_equal_families_have_no_gap() -> None:
    one = _family([1.0, 2.0, 3.0], 0.0, 0.1)
    gap = gap_at_equal_x(one, one, seed=1)
    assert gap is not None
    assert gap.difference.low == gap.difference.value == gap.difference.high == 0.0


def test_ranges_that_do_not_meet_cannot_be_compared() -> None:
    assert gap_at_equal_x(_family([1.0, 2.0], 0.0, 0.0), _family([3.0, 4.0], 0.0, 0.0), seed=1) is None


def test_verdicts() -> None:
    assert verdict(Figure(0.5, 0.4, 0.9), below=1.0) == "reproduced"
    assert verdict(Figure(0.9, 0.4, 1.1), below=1.0) == verdict(Figure(0.9, 0.4, 1.1), above=1.0) == "undecided"
    assert verdict(Figure(1.5, 1.1, 1.9), below=1.0) == "contradicted"
    assert verdict(Figure(1.5, 1.1, 1.9), above=1.0) == "reproduced"
    assert verdict(Figure(0.5, 0.4, 0.9), above=1.0) == "contradicted"
    assert verdict(Figure(math.nan, math.nan, math.nan), below=1.0) == "undecided"
