"""The Beta rule against its closed form, its table and exact enumeration."""

from __future__ import annotations

from fractions import Fraction
from math import comb, factorial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.voting.stopping.laws import HALF, by_counts
from voting.stopping.halves import half_tail
from voting.stopping.watch import Watch, read_stop

TABLE = {0.90: (3, 5, 6, 8, 9, 11, 12, 13), 0.95: (4, 6, 8, 9, 11, 12, 14, 15), 0.99: (6, 9, 11, 13, 14, 16, 18, 19)}


def watch(threshold: float = 0.95, every: int = 1) -> Watch:
    return read_stop({"rule": "beta", "threshold": threshold, "every": every}).watch()


@pytest.mark.parametrize("threshold", TABLE)
def test_the_smallest_lead_that_stops(threshold: float) -> None:
    for b, smallest in enumerate(TABLE[threshold]):
        found = watch(threshold)
        for label in "ab" * b:  # counts stay as close as can be
            assert not found.feed(label)
        for a in range(b + 1, smallest + 1):
            assert found.feed("a") == (a == smallest)
        assert found.report() == {"rule": "beta", "fired_at": b + smallest, "value": float(half_tail(smallest, b))}


def test_the_tail_is_that_of_the_beta_distribution() -> None:
    """The integral of the density p^a (1 - p)^b over (1/2, 1], by the binomial theorem."""
    for a in range(9):
        for b in range(9):
            total = Fraction(factorial(a) * factorial(b), factorial(a + b + 1))
            upper = sum(Fraction((-1) ** i * comb(b, i), a + i + 1) * (1 - HALF ** (a + i + 1)) for i in range(b + 1))
            assert half_tail(a, b) == upper / total
            assert half_tail(a, b) + half_tail(b, a) == 1


def test_unanimous_answers_stop_after_four() -> None:
    for n in range(20):
        assert half_tail(n, 0) == 1 - HALF ** (n + 1)
    found = watch()
    assert [found.feed("a") for _ in range(4)] == [False, False, False, True]


def test_it_is_not_valid_at_every_look() -> None:
    ended = by_counts((HALF, HALF), 40, lambda a, b: half_tail(max(a, b), min(a, b)) >= 0.95)
    assert round(float(sum(mass for *_, mass in ended)), 3) == 0.420


def test_it_looks_every_few_samples() -> None:
    found = watch(every=3)
    assert [found.feed("a") for _ in range(6)] == [False] * 5 + [True]
    assert found.report()["fired_at"] == 6


def test_samples_that_abstain_are_looked_at_and_not_counted() -> None:
    found = watch()
    assert not any(found.feed(None) for _ in range(50))
    assert found.report() == {"rule": "beta", "fired_at": None, "value": 0.5}
    assert [found.feed(label) for label in ("a", "a", "a", None, "a")] == [False] * 4 + [True]


@given(st.lists(st.sampled_from("abc"), max_size=30), st.permutations("abc"))
def test_the_names_of_answers_do_not_matter(labels: list[str], names: list[str]) -> None:
    one = read_stop("beta").over((label, 1.0) for label in labels)
    other = read_stop("beta").over((names["abc".index(label)], 1.0) for label in labels)
    assert one.report() == other.report()


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_the_two_largest_counts_decide(labels: list[str]) -> None:
    found = read_stop("beta").over((label, 1.0) for label in labels)
    fed = labels[: found.seen]
    first, second = sorted((fed.count(one) for one in "abc"), reverse=True)[:2]
    assert found.fired == (half_tail(first, second) >= 0.95)
    assert found.fired or found.seen == len(labels)
