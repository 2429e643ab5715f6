"""Windows of equal answers against exact enumeration."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import pytest

from tests.voting.stopping.laws import EVEN, outcomes
from voting.stopping.contract import Label
from voting.stopping.watch import Watch, read_stop


def watch(window: int = 5, **fields: str) -> Watch:
    return read_stop({"rule": "esc", "window": window, **fields}).watch()


@pytest.mark.parametrize(
    ("chances", "window", "windows"),
    [
        (EVEN, 2, 4),
        (EVEN, 3, 3),
        ({"a": Fraction(1, 2), "b": Fraction(1, 3), "c": Fraction(1, 6)}, 2, 3),
        ({"a": Fraction(1, 2), None: Fraction(1, 2)}, 2, 4),  # an abstention breaks unanimity
        ({"a": Fraction(1)}, 3, 2),
        ({None: Fraction(1)}, 2, 3),
    ],
)
def test_the_expected_number_of_windows(chances: Mapping[Label, Fraction], window: int, windows: int) -> None:
    found = outcomes(chances, window * windows, lambda: watch(window))
    unanimous = sum((p**window for label, p in chances.items() if label is not None), Fraction(0))
    expected = sum((1 - unanimous) ** i for i in range(windows))
    if unanimous:
        assert expected == (1 - (1 - unanimous) ** windows) / unanimous
    assert sum(one.seen * chance for one, chance in found) == window * expected
    assert sum(chance for one, chance in found if one.fired) == 1 - (1 - unanimous) ** windows


def test_two_even_answers_often_stop() -> None:
    """The window's own chance enumerated, eight windows of which are independent."""
    once = sum(chance for one, chance in outcomes(EVEN, 5, watch) if one.fired)
    assert once == Fraction(1, 16)
    assert round(float(1 - (1 - once) ** 8), 3) == 0.403


def test_windows_are_disjoint() -> None:
    found = watch(3)
    assert [found.feed(label) for label in "abbbaa"] == [False] * 6
    assert [found.feed(label) for label in "aaa"] == [False, False, True]
    assert found.report() == {"rule": "esc", "fired_at": 9, "value": 1.0}


def test_a_window_that_is_not_full_never_fires() -> None:
    found = read_stop({"rule": "esc", "window": 5}).over([("a", 1.0)] * 4)
    assert (found.fired, found.report()["value"]) == (False, None)


def test_a_window_of_one_stops_at_the_first_answer() -> None:
    found = watch(1)
    assert [found.feed(label) for label in (None, None, "b")] == [False, False, True]


@pytest.mark.parametrize(("answer_from", "basis"), [("all", range(6)), ("window", range(3, 6))])
def test_what_the_answer_is_taken_from(answer_from: str, basis: range) -> None:
    found = watch(3, answer_from=answer_from)
    for label in "aabcc":
        assert not found.feed(label)
        assert found.basis == range(found.seen)
    assert found.feed("c")
    assert found.basis == basis


def test_value_is_the_largest_share_of_the_last_full_window() -> None:
    found = watch(4)
    for label in ("a", "a", "b", None, "a"):
        found.feed(label)
    assert found.report()["value"] == 0.5
