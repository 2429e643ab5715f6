"""Calibration against small sums done by hand and plain definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voting.calibration import BINNINGS, aurc, auroc, brier, ece, nll, reliability
from voting.intervals import interval

PAIRS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=1
)


def columns(pairs: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [p for p, _ in pairs], [y for _, y in pairs]


def test_ece_by_hand() -> None:
    p = [0.95, 0.92, 0.55, 0.15]
    y = [1.0, 0.0, 1.0, 0.0]
    assert ece(p, y) == pytest.approx((2 * abs(0.5 - 0.935) + abs(1 - 0.55) + abs(0 - 0.15)) / 4)


def test_bins_hold_their_upper_end() -> None:
    """0.3 belongs to (0.2, 0.3], 0.30001 to the next; and so for all multiples of 1/K that are ends of bins."""
    for bins in (10, 15):
        for i in range(1, bins + 1):
            both = reliability([i / bins, i / bins - 1e-6], [1.0, 1.0], bins)
            assert [one.problems for one in both] == [2]
            if i < bins:
                assert len(reliability([i / bins, i / bins + 1e-6], [1.0, 1.0], bins)) == 2


def test_a_confidence_of_zero() -> None:
    p, y = [0.0, 0.05], [1.0, 0.0]
    assert ece(p, y) == pytest.approx(abs(0.5 - 0.025))
    assert ece(p, y, binning="published") == pytest.approx(0.05 / 2)  # left out of the sum, not of the number


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1), st.floats(1e-3, 1))
def test_a_constant_predictor(credits: list[float], p: float) -> None:
    expected = abs(math.fsum(credits) / len(credits) - p)
    for binning in BINNINGS:
        assert ece([p] * len(credits), credits, binning=binning) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1))
def test_a_perfect_predictor(credits: list[float]) -> None:
    for binning in BINNINGS:
        assert ece(credits, credits, binning=binning) == 0
    assert brier(credits, credits) == 0
    assert nll(credits, credits) == pytest.approx(0, abs=2e-6)


@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_problems_does_not_matter(pairs: list[tuple[float, float]], random: object) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for measure in (ece, brier, nll, auroc, aurc, lambda p, y: ece(p, y, 4, "mass")):
        one, other = measure(*columns(pairs)), measure(*columns(shuffled))
        assert one == pytest.approx(other, abs=1e-12, nan_ok=True)


@given(PAIRS)
def test_every_problem_is_in_one_bin(pairs: list[tuple[float, float]]) -> None:
    for binning in ("width", "mass"):
        found = reliability(*columns(pairs), bins=4, binning=binning)
        assert sum(one.problems for one in found) == len(pairs)
        assert [one.confidence for one in found] == sorted(one.confidence for one in found)
        assert 0 <= ece(*columns(pairs), 4, binning) <= 1


def test_bins_of_equal_mass() -> None:
    p = [i / 100 for i in range(20)]
    assert [one.problems for one in reliability(p, [0.0] * 20, 4, "mass")] == [5, 5, 5, 5]
    tied = [0.1, 0.2, 0.2, 0.2, 0.2, 0.9]
    assert [one.problems for one in reliability(tied, [0.0] * 6, 3, "mass")] == [5, 1]


def test_brier_and_nll_by_hand() -> None:
    p, y = [0.8, 0.3, 0.5], [1.0, 0.0, 0.5]
    assert brier(p, y) == pytest.approx((0.04 + 0.09 + 0) / 3)
    assert nll(p, y) == pytest.approx(-(math.log(0.8) + math.log(0.7) + math.log(0.5)) / 3)


def test_nll_is_clipped() -> None:
    assert nll([0.0, 1.0], [1.0, 0.0]) == pytest.approx(-math.log(1e-6))
    assert nll([0.0], [0.0]) == pytest.approx(1e-6, rel=1e-3)
    p, y = [0.0], [1.0]
    clipped = -(1 - 1e-6) * math.log(1e-6) - 1e-6 * math.log(1 - 1e-6)
    assert nll(p, y, clip_credit=True) == pytest.approx(clipped, rel=1e-9)
    assert nll(p, y, clip_credit=True) != nll(p, y)


@given(PAIRS)
def test_auroc_counts_pairs(pairs: list[tuple[float, float]]) -> None:
    """A credit of one half is half of a right problem and half of a wrong one."""
    won = total = 0.0
    for (p, y), (q, z) in itertools.product(pairs, repeat=2):
        total += y * (1 - z)
        won += y * (1 - z) * ((p > q) + (p == q) / 2)
    found = auroc(*columns(pairs))
    assert found == pytest.approx(won / total) if total and any(y > 0 for _, y in pairs) else math.isnan(found)


def test_auroc_ends() -> None:
    assert auroc([0.9, 0.8, 0.1], [1, 1, 0]) == 1
    assert auroc([0.1, 0.2, 0.9], [1, 1, 0]) == 0
    assert auroc([0.5] * 4, [1, 0, 1, 0]) == 0.5
    assert math.isnan(auroc([0.5, 0.6], [1, 1]))


def test_aurc_is_the_mean_over_orders_of_equal_confidences() -> None:
    pairs = [(0.9, 1.0), (0.5, 0.0), (0.5, 1.0), (0.5, 0.5), (0.1, 0.0)]
    areas = []
    for middle in itertools.permutations(pairs[1:4]):
        errors = [1 - y for _, y in (pairs[0], *middle, pairs[4])]
        areas.append(sum(sum(errors[:m]) / m for m in range(1, 6)) / 5)
    assert aurc(*columns(pairs)) == pytest.approx(sum(areas) / len(areas))


def test_nothing_is_no_number() -> None:
    for measure in (ece, brier, nll, auroc, aurc):
        assert math.isnan(measure([], []))


@pytest.mark.parametrize(
    ("p", "y"), [([1.1], [1]), ([-0.1], [1]), ([math.nan], [1]), ([0.5], [2]), ([0.5], [math.nan]), ([0.5], [1, 0])]
)
def test_what_is_no_confidence_is_refused(p: list[float], y: list[float]) -> None:
    for measure in (ece, brier, nll, auroc, aurc):
        with pytest.raises(ValueError, match=r"in \[0, 1\]|one credit"):
            measure(p, y)


def test_intervals() -> None:
    p = np.linspace(0.05, 0.95, 50)
    y = (np.arange(50) % 3 > 0).astype(float)
    found = interval(ece, p, y, seed=0)
    assert found is not None and found.low < found.high and found == interval(ece, p, y, seed=0)
    assert found != interval(ece, p, y, seed=1)
    assert interval(ece, [0.5], [1.0], seed=0) is None
    assert interval(auroc, [0.5, 0.6], [1.0, 1.0], seed=0) is None  # never a number
    some = interval(auroc, [0.5, 0.6, 0.7], [1.0, 0.0, 1.0], seed=0)  # a number for most resamples
    assert some is not None and 0 <= some.low <= some.high <= 1
