"""Curves of right answers over their number, against counting by hand, and what a height of them costs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bench.pass_at import of_independent, of_ordered, price, saved_at_equal_height


def test_independent_answers_by_counting_every_choice_of_k() -> None:
    right = np.random.default_rng(0).random((8, 6)) < 0.3
    right[0], right[1] = False, True
    curve = of_independent(right)
    for item, row in enumerate(right):
        for k in range(1, 7):
            chosen = [any(row[list(few)]) for few in itertools.combinations(range(6), k)]
            assert curve[item, k - 1] == pytest.approx(np.mean(chosen))


def test_ordered_answers_count_from_the_first_right_one() -> None:
    right = np.array([[False, True, False], [False, False, False], [True, False, False]])
    assert of_ordered(right).tolist() == [[0, 1, 1], [0, 0, 0], [1, 1, 1]]


def test_price_lies_on_straight_lines_from_nothing_to_the_end() -> None:
    curve, tokens = np.array([0.4, 0.6, 0.7]), np.array([10.0, 20.0, 30.0])
    assert price(curve, tokens, 0.0) == 0.0
    assert price(curve, tokens, 0.2) == pytest.approx(5.0)
    assert price(curve, tokens, 0.5) == pytest.approx(15.0)
    assert price(curve, tokens, 0.9) == 30.0  # nobody knows: at least as much


def test_a_level_costs_what_its_beginning_does() -> None:
    assert price(np.array([0.5, 0.5, 0.5]), np.array([10.0, 20.0, 30.0]), 0.5) == 10.0
    assert price(np.array([0.5, 0.4, 0.6]), np.array([10.0, 20.0, 30.0]), 0.5) == 10.0


def test_half_the_tokens_for_the_same_height_save_half() -> None:
    curve = np.tile([0.5, 0.75], (10, 1))
    tokens = np.tile([100.0, 200.0], (10, 1))
    saved = saved_at_equal_height(np.full(10, 0.75), np.full(10, 100.0), curve, tokens, seed=1)
    assert (saved.value, saved.low, saved.high) == pytest.approx((0.5, 0.5, 0.5))


def test_items_are_resampled_together() -> None:
    """A way that is a point of the curve on every item saves nothing in every resample."""
    rng = np.random.default_rng(1)
    curve = np.sort(rng.random((30, 4)), 1)
    tokens = np.arange(1, 5) * rng.integers(10, 50, (30, 1))
    saved = saved_at_equal_height(curve[:, 2], tokens[:, 2].astype(float), curve, tokens.astype(float), seed=2)
    assert (saved.value, saved.low, saved.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)


def test_nothing_solved_saves_nothing_that_could_be_said() -> None:
    nothing = np.zeros((3, 2))
    assert np.isnan(saved_at_equal_height(nothing[:, 0], np.ones(3), nothing, np.ones((3, 2)), seed=1).value)
