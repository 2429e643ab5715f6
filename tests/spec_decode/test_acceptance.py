"""Rates of acceptance: the formula, ranks of siblings, and what a simulated verifier teaches."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spec_decode.acceptance import RATES, Acceptance, RequestAcceptance, Verified, bucket
from spec_decode.tree_forms import chain, ranks, static


def test_buckets() -> None:
    assert [bucket(matched) for matched in (0, 1, 2, 3, 4, 5, 8, 9, 100)] == [0, 1, 2, 3, 3, 4, 4, 5, 5]


def rate(request: RequestAcceptance, bucket: int = 0) -> float:
    return float(request.gains(chain(1), bucket)[0])


def by_enumeration(trials: list[tuple[int, int]], others: list[float]) -> np.ndarray:
    """The posterior over `RATES` of a request. trials: (accepted, rejected) of each step, which later ones make count
    less; others: how many requests have been of each rate."""
    weights = []
    for value, seen in zip(RATES, others, strict=True):
        likelihood = 0.0
        for good, bad in trials:
            likelihood = 0.96 ** (good + bad) * likelihood + good * math.log(value) + bad * math.log(1 - value)
        weights.append((0.3 + seen) * math.exp(likelihood))
    return np.array(weights) / sum(weights)


def test_the_rate_of_a_request_is_that_of_bayes() -> None:
    nobody, source = [0.0] * len(RATES), Acceptance()
    one, other = RequestAcceptance(source), RequestAcceptance(source)
    assert rate(one) == pytest.approx(RATES.mean())
    one.add(Verified(chain(4), [0, 1]), 0)  # two accepted, one rejected
    one.add(Verified(chain(2), [0, 1]), 0)  # two accepted
    known = by_enumeration([(2, 1), (2, 0)], nobody)
    for length in (1, 5):
        powers = np.array([(RATES**depth) @ known for depth in range(1, length + 1)])
        assert one.gains(chain(length), 0) == pytest.approx(powers)
    # what is expected of another one
    assert rate(other) == pytest.approx(RATES @ ((known + 0.3) / (known + 0.3).sum()))
    other.add(Verified(chain(1), []), 0)
    assert rate(other) == pytest.approx(RATES @ by_enumeration([(0, 1)], list(known)))
    assert rate(one, 3) == pytest.approx(RATES.mean())  # buckets are apart
    assert source.population(3) is not source.population(0)


def test_long_drafts_are_expected_of_requests_that_differ() -> None:
    """Half of the requests accept nearly everything, half nearly nothing: the mean says nothing about long drafts."""
    source, rng = Acceptance(), np.random.default_rng(3)
    for request in range(60):
        own = RequestAcceptance(source)
        for _ in range(10):
            accepted = 0
            while accepted < 4 and rng.random() < (0.97, 0.1)[request % 2]:
                accepted += 1
            own.add(Verified(chain(4), range(accepted)), 0)
    first, *_, last = RequestAcceptance(source).gains(chain(8), 0)
    assert 0.4 < first < 0.65 and last > 0.3 > 10 * first**8


def test_what_is_asked_for_changes() -> None:
    source = Acceptance()
    for path, low, high in (([], 0.0, 0.15), ([0, 1, 2], 0.6, 1.0), ([], 0.0, 0.35)):
        for _ in range(60):
            own = RequestAcceptance(source)
            for _ in range(5):
                own.add(Verified(chain(3), path), 0)
        assert low <= rate(RequestAcceptance(source)) <= high
    good = RequestAcceptance(source)
    for _ in range(8):
        good.add(Verified(chain(3), [0, 1, 2]), 0)
    assert rate(good) > 0.9  # whatever others are
    for _ in range(30):
        good.add(Verified(chain(3), []), 0)
    assert rate(good) < 0.4


def test_gains_never_rise_along_a_path() -> None:
    rates = RequestAcceptance(Acceptance())
    assert rates.gains((), 0).tolist() == []
    gains = rates.gains(static((3, 2), 9), 0)
    assert gains[0] > gains[1] > gains[2] and gains[3] < gains[0] and gains[-1] < gains[2]


def test_a_later_sibling_tries_where_the_first_has_failed() -> None:
    """A verifier that accepts the first child with 0.6, the second with 0.25, the third with 0.1: whatever part of the
    tree it is given, the rates are found."""
    rng = np.random.default_rng(4)
    truth = [0.6, 0.25, 0.1]
    source = Acceptance()
    rates = [RequestAcceptance(source) for _ in range(20)]
    for step in range(4000):
        form = [static((3, 2), 9), chain(3), static((2, 2), 6), static((3, 1), 5)][step % 4]
        rank_of, path, place = ranks(form), [], -1
        while True:
            rank = int(rng.choice(4, p=[*truth, 1 - sum(truth)]))
            here = [node for node, parent in enumerate(form) if parent == place]
            found = [node for node in here if rank_of[node] == rank]
            if not found:
                break
            path.append(found[0])
            place = found[0]
        rates[step % 20].add(Verified(form, path), 0)
    assert source.by_rank(3) == pytest.approx(truth, abs=0.06)
    gains = np.mean([one.gains(static((3, 1), 6), 0) for one in rates], 0)
    assert gains == pytest.approx([0.6, 0.25, 0.1, 0.36, 0.15, 0.06], abs=0.08)
