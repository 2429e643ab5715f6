"""Confidence and entropy of tokens: exact inequalities and their equality cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from voting.token_statistics import confidences, entropies

LOGITS = st.lists(st.floats(-30, 30), min_size=2, max_size=12)


def top(logits: list[float], k: int) -> np.ndarray:
    """[1, k] log-probabilities of the most probable."""
    return np.sort(log_softmax(np.array(logits)))[::-1][None, :k]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(logits=LOGITS, k=st.integers(2, 12))
def test_bounds(logits: list[float], k: int) -> None:
    k = min(k, len(logits))
    rows = top(logits, k)
    assert confidences(rows)[0] >= math.log(k) - 1e-12
    assert -1e-12 <= entropies(rows)[0] <= math.log(k) + 1e-12


@pytest.mark.parametrize("vocab", [2, 20, 100])
def test_a_uniform_distribution(vocab: int) -> None:
    rows = np.full((3, vocab), -math.log(vocab))
    assert confidences(rows) == pytest.approx([math.log(vocab)] * 3, rel=1e-14)
    assert entropies(rows) == pytest.approx([math.log(vocab)] * 3, rel=1e-14)
    part = rows[:, : vocab // 2]  # equally probable, but not all there is
    assert confidences(part)[0] == pytest.approx(math.log(vocab)) and math.log(vocab) > math.log(vocab // 2)
    assert entropies(part)[0] == pytest.approx(math.log(vocab // 2))


def test_formulas() -> None:
    p = np.array([[0.5, 0.25, 0.125], [0.9, 0.05, 0.01]])
    rows = np.log(p)
    assert confidences(rows) == pytest.approx([-sum(math.log(x) for x in row) / 3 for row in p])
    scaled = [[x / sum(row) for x in row] for row in p]
    assert entropies(rows) == pytest.approx([-sum(x * math.log(x) for x in row) for row in scaled])


def test_masked_tokens() -> None:
    rows = np.array([[0.0, -np.inf, -np.inf]])
    assert entropies(rows) == [0.0]
    assert confidences(rows) == [math.inf]


def test_no_tokens() -> None:
    assert confidences(np.empty((0, 20))).shape == entropies(np.empty((0, 20))).shape == (0,)
