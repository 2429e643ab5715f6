"""Rates of acceptance: the formula, ranks of siblings, and what a simulated verifier teaches."""

from __future__ import annotations

import numpy as np
import pytest

from spec_decode.acceptance import Acceptance, RequestAcceptance, Verified, bucket
from spec_decode.tree_forms import chain, ranks, static


def test_buckets() -> None:
    assert [bucket(matched) for matched in (0, 1, 2, 3, 4, 5, 8, 9, 100)] == [0, 1, 2, 3, 3, 4, 4, 5, 5]


def test_the_rate_is_that_of_the_formula() -> None:
    source = Acceptance()
    one, other = RequestAcceptance(source), RequestAcceptance(source)
    assert one.rate(0) == pytest.approx(0.7)
    one.add(Verified(chain(4), [0, 1]), 0)  # two accepted, one rejected
    one.add(Verified(chain(2), [0, 1]), 0)  # two accepted
    usual = (4 + 2 - 2 * 0.001 + 4 * 0.7 - 2) / (5 - 3 * 0.001 + 4)  # what all requests say, a little decayed
    accepted, tried = 2 * 0.95 + 2, 3 * 0.95 + 2
    assert source.usual(0) == pytest.approx(usual)
    assert one.rate(0) == pytest.approx((accepted + 4 * usual) / (tried + 4))
    assert other.rate(0) == pytest.approx(usual)  # of a request that has tried nothing
    assert one.rate(3) == pytest.approx(0.7)  # buckets are apart
    other.add(Verified(chain(3), []), 3)
    assert source.usual(3) == pytest.approx(2.8 / 5) and source.usual(0) == pytest.approx(usual)


def test_gains_of_a_chain_are_powers_and_never_rise() -> None:
    rates = RequestAcceptance(Acceptance())
    assert rates.gains(chain(3), 0) == pytest.approx([0.7, 0.49, 0.343])
    assert rates.gains((), 0) == []
    perfect = RequestAcceptance(Acceptance(expected=1.0))
    assert perfect.gains(chain(3), 0) == [1.0, 1.0, 1.0]


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
    assert source.usual(0) == pytest.approx(0.6, abs=0.06)
    gains = np.mean([one.gains(static((3, 1), 6), 0) for one in rates], 0)
    assert gains == pytest.approx([0.6, 0.25, 0.1, 0.36, 0.15, 0.06], abs=0.08)
