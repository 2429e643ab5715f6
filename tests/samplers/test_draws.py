"""Integer weights and the laws of the draws."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from samplers.argmax import compared_peaks, peaks
from samplers.contract import Rows
from samplers.quantise import BITS, draw, draw_by_mass, pick, quantise
from samplers.registry import DRAWS
from samplers.rng import Noise

rows_of_logits = st.integers(2, 300).flatmap(
    lambda size: st.lists(
        st.one_of(st.floats(-30, 30, width=32), st.just(float("-inf"))), min_size=size, max_size=size
    ).filter(lambda row: max(row) > -1e9)
)


@settings(max_examples=150, deadline=None)
@given(rows_of_logits)
def test_weights_sum_to_two_to_the_52_and_follow_the_softmax(row: list[float]) -> None:
    logits = np.array([row], np.float32)
    weights = quantise(logits)[0]
    assert weights.sum() == 2**BITS and weights.min() >= 0
    assert not weights[np.isneginf(logits[0])].any()
    exact = np.exp(logits[0].astype(np.float64) - logits.max())
    exact /= exact.sum()
    assert np.abs(weights / 2.0**BITS - exact).max() <= (len(row) + 1) * 2.0**-BITS + 1e-15


def test_every_token_gets_exactly_its_share_of_the_bits() -> None:
    weights = quantise(np.log(np.array([[0.5, 0.25, 0.125, 0.125]])))
    assert weights[0].tolist() == [2**51, 2**50, 2**49, 2**49]
    edges = weights[0].cumsum()
    for token, edge in enumerate(edges):
        first, last = edge - weights[0][token], edge - 1
        bits = np.array([first, last])
        assert pick(np.repeat(weights, 2, 0), bits).tolist() == [token, token]


def test_a_token_without_weight_is_never_drawn_not_even_by_zero_bits() -> None:
    weights = quantise(np.array([[-np.inf, 0.0, -np.inf]]))
    assert pick(weights, np.array([0])).tolist() == [1]
    assert pick(weights, np.array([2**BITS - 1])).tolist() == [1]


def test_rows_of_mass_are_drawn_from_like_rows_of_logits() -> None:
    """Whatever the factor, and with the very edges of each token's bits."""
    mass = torch.tensor([[0.5, 0.0, 0.25, 0.125, 0.125]], dtype=torch.float64)
    edges = [0, 2**51, 2**51 + 2**50, 2**51 + 2**50 + 2**49, 2**52]
    for factor in (1.0, 2.0**-40, 8.0):
        for token, (first, end) in zip((0, 2, 3, 4), pairwise(edges), strict=True):
            for bits in (first, end - 1):
                assert draw_by_mass(factor * mass, torch.tensor([bits])).tolist() == [token]
                assert draw(mass.log(), torch.tensor([bits])).tolist() == [token]
    assert 0 <= draw_by_mass(torch.zeros(1, 5), torch.tensor([7])) <= 5


@pytest.mark.parametrize("name", ["iid", "gumbel"])
def test_the_law_of_a_draw(name: str) -> None:
    count, vocab = 60_000, 9
    row = torch.randn(vocab, generator=torch.Generator().manual_seed(3)) * 1.5
    row[4] = -torch.inf
    seeds, zeros = np.arange(count), np.zeros(count, np.int64)
    rows = Rows(torch.from_numpy(zeros), torch.from_numpy(zeros), Noise(seeds, zeros, zeros))
    tokens = DRAWS.get(name).pick(row.expand(count, vocab), {}, rows, None)
    seen = Counter(tokens.tolist())
    assert seen[4] == 0
    kept = [i for i in range(vocab) if i != 4]
    expected = row.double().softmax(0)[kept].numpy() * count
    assert stats.chisquare([seen[i] for i in kept], expected * (count / expected.sum())).pvalue > 1e-6


def test_a_certain_row_returns_its_token_whatever_the_bits() -> None:
    logits = torch.full((500, 6), -torch.inf)
    logits[:, 2] = 0.3
    zeros = np.zeros(500, np.int64)
    rows = Rows(torch.from_numpy(zeros), torch.arange(500), Noise(zeros, zeros, np.arange(500)))
    for name in ("iid", "gumbel"):
        assert DRAWS.get(name).pick(logits, {}, rows, None).eq(2).all()


def test_the_fast_draw_picks_what_the_reference_picks() -> None:
    rng = np.random.default_rng(0)
    for vocab in (2, 7, 300, 20_000):
        logits = (rng.normal(size=(64, vocab)) * 3).astype(np.float32)
        logits[rng.random(logits.shape) < 0.3] = -np.inf
        logits[:, 1] = 0.5
        bits = rng.integers(0, 2**BITS, 64)
        bits[:2] = 0, 2**BITS - 1
        fast = draw(torch.from_numpy(logits), torch.from_numpy(bits))
        # an exponential that differs in its last bit may move an edge past one draw in 10^10
        assert fast.tolist() == pick(quantise(logits), bits).tolist()


def test_peaks_on_any_device_are_lowest_and_show_what_is_not_a_number() -> None:
    rows = torch.tensor([[1.0, 3.0, 3.0], [-torch.inf, -torch.inf, -torch.inf], [0.0, torch.inf, 1.0], [2.0, 0.0, 0.0]])
    for one in (peaks, compared_peaks):
        ids, values = one(rows)
        assert ids.dtype == torch.int64 and ids.tolist() == [1, 0, 1, 0]
        assert values.tolist() == [3.0, -torch.inf, torch.inf, 2.0]
        ids, values = one(torch.tensor([[0.0, torch.nan, 5.0], [1.0, 2.0, 0.0]]))
        assert values[0].isnan() and 0 <= ids[0] < 3 and (ids[1], values[1]) == (1, 2.0)
