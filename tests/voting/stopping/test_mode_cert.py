"""The mode certificate: identities of its e-value, its tables, and exact error rates."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.voting.stopping.laws import HALF, by_counts, outcomes
from voting.stopping.bets import CountBets, WeightedBets
from voting.stopping.certificate import Certificate, as_float
from voting.stopping.contract import Label
from voting.stopping.halves import e_value, half_tail
from voting.stopping.watch import Watch, read_stop

TABLE = {
    0.10: (5, 8, 11, 13, 15, 17, 19, 20),
    0.05: (7, 10, 12, 14, 16, 18, 20, 22),
    0.01: (9, 13, 15, 18, 20, 22, 24, 26),
}


def watch(**fields: Any) -> Watch:
    return read_stop({"rule": "mode_cert", **fields}).watch()


def feed(found: Watch, labels: str) -> list[bool]:
    return [found.feed(None if label == "-" else label) for label in labels]


def test_identities_of_e() -> None:
    for a, b in product(range(25), repeat=2):
        assert e_value(a + 1, b) + e_value(a, b + 1) == 2 * e_value(a, b)
        assert e_value(a + 1, b) > e_value(a, b) > e_value(a, b + 1)
        beta = Fraction(math.factorial(a) * math.factorial(b), math.factorial(a + b + 1))
        assert e_value(a, b) == 2 ** (a + b + 1) * beta * half_tail(a, b)
        integral = sum(  # of (1 + x)^a (1 - x)^b, by the binomial theorem
            Fraction(math.comb(a, i) * math.comb(b, j) * (-1) ** j, i + j + 1)
            for i in range(a + 1)
            for j in range(b + 1)
        )
        assert e_value(a, b) == integral
    for n in range(200):
        assert e_value(n, 0) == Fraction(2 ** (n + 1) - 1, n + 1)
        assert e_value(0, n) == Fraction(1, n + 1)


def test_e_is_finite_where_powers_are_not() -> None:
    assert as_float(e_value(0, 3000)) == pytest.approx(1 / 3001)
    assert as_float(e_value(3000, 0)) == pytest.approx(1.797e308, rel=1e-3)
    assert math.log(e_value(900, 100)) == pytest.approx(_log_e(900, 100), rel=1e-12)


def _log_e(a: int, b: int) -> float:
    """By quadrature in logarithms."""
    points, weights = np.polynomial.legendre.leggauss(600)
    s = (points + 1) / 2
    return float(np.logaddexp.reduce(np.log(weights / 2) + a * np.log1p(s) + b * np.log1p(-s)))


@pytest.mark.parametrize("alpha", TABLE)
def test_the_smallest_count_that_certifies(alpha: float) -> None:
    for b, smallest in enumerate(TABLE[alpha]):
        found = watch(alpha=alpha)
        assert not any(feed(found, "xxx" + "y" * b + "x" * (smallest - 1)))
        assert feed(found, "x") == [True]
        assert found.report()["cert"] == {
            "target": "x",
            "e": float(e_value(smallest, b)),
            "alpha": alpha,
            "certified": True,
            "n_used": 3 + b + smallest,
        }


def test_the_earliest_stop() -> None:
    for warmup in (1, 3, 6):
        found = watch(warmup=warmup)
        assert feed(found, "x" * (warmup + 7)) == [False] * (warmup + 6) + [True]


@pytest.mark.parametrize(("p", "q", "error"), [(HALF, HALF, 0.0261), (Fraction(2, 5), Fraction(3, 5), 0.0028)])
def test_how_often_a_fixed_wrong_target_is_certified(p: Fraction, q: Fraction, error: float) -> None:
    ended = by_counts((p, q), 60, lambda a, b: e_value(a, b) >= 20)
    assert round(float(sum(mass for *_, mass in ended)), 4) == error


def test_the_bound_holds_for_whoever_leads_after_the_warm_up() -> None:
    """Every sequence of 8 of three even answers, none of which is the unique mode; a bound that is easily reached."""
    thirds: dict[Label, Fraction] = dict.fromkeys("abc", Fraction(1, 3))
    for targets in (1, 2):
        found = outcomes(thirds, 8, lambda targets=targets: watch(alpha=0.5, warmup=1, max_targets=targets))
        wrong = sum(chance for one, chance in found if one.fired)
        assert 0 < wrong <= HALF


def test_without_a_split_the_bound_is_broken() -> None:
    """Which is why the number that `report_only` shows is called heuristic."""
    ended = by_counts((HALF, HALF), 60, lambda a, b: e_value(max(a, b), min(a, b)) >= 20)
    assert sum(mass for *_, mass in ended) > Fraction(1, 20)


@given(st.integers(0, 3), st.integers(1, 4))
def test_e_is_a_fair_game_at_a_tie(a: int, b: int) -> None:
    bets = CountBets()
    for label in "x" * a + "y" * b:
        bets.add(label, 1)
    now, after = bets.e("x"), []
    for label in "xy":
        bets = CountBets()
        for one in "x" * a + "y" * b + label:
            bets.add(one, 1)
        after.append(bets.e("x"))
    assert sum(after) / 2 == now


def test_the_largest_rival_decides_and_an_unseen_one_has_no_votes() -> None:
    bets = CountBets()
    for label in "xxxxyzz":
        bets.add(label, 1)
    assert bets.e("x") == e_value(4, 2)
    assert bets.e("z") == e_value(2, 4)
    assert bets.e("w") == e_value(0, 4)
    assert CountBets().e("x") == 1


def test_the_target_leads_after_the_warm_up() -> None:
    for labels, target in (("abb", "b"), ("abc", "a"), ("--b-a-c", "b")):
        found = Certificate(0.05, 3, 1, weighted=False)
        for label in labels:
            assert found.target is None
            found.add(None if label == "-" else label)
        assert (found.target, found.e, found.n_used) == (target, 1, len(labels))


def test_warm_up_samples_and_abstentions_do_not_count() -> None:
    found = watch()
    assert not any(feed(found, "xxx-x--xxxxx-"))
    assert found.report()["value"] == float(e_value(6, 0))
    assert feed(found, "-x") == [False, True]


def test_whoever_overtakes_is_tested_afresh() -> None:
    found = Certificate(0.05, 1, 2, weighted=False)
    for label in "abb":  # warm-up a; then b overtakes at its first sample
        found.add(label)
    assert (found.target, found.e) == ("b", e_value(1, 0))
    for _ in range(6):
        found.add("b")
    assert (found.e, found.certified) == (e_value(7, 0), False)  # 31.9: half of alpha is not enough
    found.add("b")
    assert found.e == e_value(8, 0) >= 40 and found.certified
    single = Certificate(0.05, 1, 1, weighted=False)
    for label in "abbbbbbbbbbbb":
        single.add(label)
    assert (single.target, single.certified) == ("a", False)


def test_equal_counts_do_not_overtake() -> None:
    found = Certificate(0.05, 1, 2, weighted=False)
    for label in "aab":
        found.add(label)
    assert (found.target, found.e) == ("a", e_value(1, 1))


def test_no_more_targets_than_allowed() -> None:
    found = Certificate(0.05, 1, 2, weighted=False)
    for label in "a" + "b" + "ccc":
        found.add(label)
    assert found.target == "b"


def test_what_is_certified_stays_so() -> None:
    found = Certificate(0.05, 3, 1, weighted=False)
    for label in "x" * 10 + "y" * 50:
        found.add(label)
    assert found.certified and found.n_used == 10 and found.e == e_value(7, 0)


def test_report_only_never_fires_and_labels_its_number() -> None:
    found = watch(report_only=True)
    assert not any(feed(found, "x" * 20))
    report = found.report()
    assert report["fired_at"] is None
    assert report["cert"]["certified"] and report["cert"]["n_used"] == 10
    assert report["heuristic"] == {"target": "x", "e": float(e_value(20, 0))}


def test_only_abstentions_prove_nothing() -> None:
    found = watch(report_only=True)
    assert not any(feed(found, "-" * 100))
    assert found.report()["value"] is None
    assert found.report()["cert"] == {"target": None, "e": 1.0, "alpha": 0.05, "certified": False, "n_used": 100}


@settings(deadline=None)
@given(st.lists(st.sampled_from("xyz"), max_size=63))
def test_weights_of_one_are_counts(labels: list[str]) -> None:
    counts, weighted = CountBets(), WeightedBets()
    for label in labels:
        counts.add(label, 1)
        weighted.add(label, 1.0)
    for target in "xyzw":
        assert weighted.e(target) == pytest.approx(float(counts.e(target)), rel=1e-13)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("xyz"), st.fractions(0, 1, max_denominator=8)), max_size=6))
def test_weighted_bets_are_integrals_of_polynomials(samples: list[tuple[str, Fraction]]) -> None:
    bets = WeightedBets()
    for label, weight in samples:
        bets.add(label, float(weight))

    def integral(rival: str) -> Fraction:
        coefficients = [Fraction(1)]
        for label, weight in samples:
            slope = weight * ((label == "x") - (label == rival))
            shifted = [Fraction(0), *(slope * one for one in coefficients)]
            coefficients = [one + other for one, other in zip([*coefficients, Fraction(0)], shifted, strict=True)]
        return sum((one / (i + 1) for i, one in enumerate(coefficients)), Fraction(0))

    assert bets.e("x") == pytest.approx(float(min(integral(rival) for rival in "yzw")), rel=1e-12)


@settings(deadline=None)
@given(st.floats(0, 1), st.lists(st.tuples(st.sampled_from("xy"), st.floats(0, 1)), max_size=10))
def test_a_weighted_bet_is_fair_at_a_tie(weight: float, samples: list[tuple[str, float]]) -> None:
    """Against the one rival that has been named."""

    def after(*last: tuple[str, float]) -> float:
        bets = WeightedBets()
        for label, one in [("y", 0.5), *samples, *last]:
            bets.add(label, one)
        return bets.e("x")

    assert (after(("x", weight)) + after(("y", weight))) / 2 == pytest.approx(after(), rel=1e-12)


def test_the_weighted_certificate_reads_weights() -> None:
    stop = read_stop({"rule": "mode_cert", "weighted": True})
    assert stop.needs == {"logprobs"} and read_stop("mode_cert").needs == frozenset()
    assert stop.over([("x", 1.0)] * 10).fired
    assert not stop.over([("x", 0.1)] * 40).fired
    assert stop.over([("x", 0.9)] * 3 + [("x", 0.9), ("y", 0.1)] * 20).fired
    assert not read_stop("mode_cert").over([("x", 0.9)] * 3 + [("x", 0.9), ("y", 0.1)] * 20).fired
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        stop.over([("x", 1.0)] * 3 + [("x", 1.5)])
