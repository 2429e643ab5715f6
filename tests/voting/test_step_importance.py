"""What a step is worth, from log-probabilities."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voting.step_importance import Derivation, importances

LOGPROBS = st.floats(-9999, 0)


def test_leaving_a_step_out_leaves_the_other_tokens_alone() -> None:
    whole = Derivation((1, 2), ((3,), (), (3,), (4, 5)), (6, 7))
    assert whole.ids() == whole.ids(1) == (1, 2, 3, 3, 4, 5, 6, 7)
    assert whole.ids(0) == whole.ids(2) == (1, 2, 3, 4, 5, 6, 7)
    assert whole.ids(3) == (1, 2, 3, 3, 6, 7)
    assert whole.scored == [0, 2, 3]
    assert Derivation((1,), (), (2,)).ids() == (1, 2)


def test_by_hand() -> None:
    base, without = [math.log(0.5), math.log(0.125)], {0: [math.log(0.25), math.log(0.0625)], 2: [math.log(0.5)] * 2}
    token = importances(3, base, without)
    assert token.base_nll == pytest.approx(2 * math.log(2))  # perplexity 4
    assert token.nll_without == pytest.approx((3 * math.log(2), 2 * math.log(2), math.log(2)))
    assert token.importance == pytest.approx((math.log(2), 0, -math.log(2)))
    assert token.importance[1] == 0.0
    assert importances(3, base, without, "sum").importance == pytest.approx((2 * math.log(2), 0, -2 * math.log(2)))


def test_a_certain_answer_without_steps() -> None:
    found = importances(0, [0.0, 0.0], {})
    assert (str(found.base_nll), found.nll_without, found.importance) == ("0.0", (), ())


@given(st.integers(1, 20).flatmap(lambda n: st.lists(st.lists(LOGPROBS, min_size=n, max_size=n), min_size=1)))
def test_per_token_and_in_all(rows: list[list[float]]) -> None:
    base, *others = rows
    token, whole = (importances(len(others), base, dict(enumerate(others)), kind) for kind in ("token", "sum"))
    n = len(base)
    for one, other in zip(token.importance, whole.importance, strict=True):
        assert n * one == pytest.approx(other, rel=1e-9, abs=1e-9)
    exact = -sum(map(Fraction, base))
    assert whole.base_nll == float(exact)
    for nll, row in zip(whole.nll_without, others, strict=True):
        assert nll == float(-sum(map(Fraction, row)))
