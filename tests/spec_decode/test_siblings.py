"""Children of a place: their laws by counting, their order, and rows that have too few tokens."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from spec_decode.drafters.siblings import LAWS, NONE, Rows, best

DRAWS, RARE = 40_000, 1e-6  # a right law fails once in a million seeds
Q = [0.4, 0.05, 0.25, 0.0, 0.3]
LOGITS = torch.tensor([Q]).log()


def rows(logits: torch.Tensor, counts: list[int], seed: int = 0) -> Rows:
    """Rows with random numbers; `counts` children each."""
    random = np.random.default_rng(seed)
    bits = torch.from_numpy(random.integers(0, 2**52, (max(counts), len(logits))))
    return Rows(logits, logits.softmax(1), counts, bits)


def law_of(law: str, count: int) -> dict[tuple[int, ...], float]:
    """The probability of each list of children, written down from the definition."""
    if law == "hu":
        top = sorted(range(len(Q)), key=lambda token: (-Q[token], token))[: count - 1]
        rest = 1 - sum(Q[token] for token in top)
        return {(token, *top): Q[token] / rest for token in range(len(Q)) if token not in top and Q[token]}
    found = {}
    for tokens in itertools.product(range(len(Q)), repeat=count):
        chance, taken = 1.0, 0.0
        for rank, token in enumerate(tokens):
            fresh = law == "iid" or token not in tokens[:rank]
            chance *= fresh * Q[token] / (1 - taken)
            taken += Q[token] * (law == "swor")
        if chance:
            found[tokens] = chance
    return found


@pytest.mark.parametrize(("law", "count"), [("auto", 1), ("iid", 2), ("swor", 1), ("swor", 3), ("hu", 1), ("hu", 3)])
def test_children_have_the_law_that_is_recorded(law: str, count: int) -> None:
    given = rows(LOGITS.expand(DRAWS, -1), [count] * DRAWS, seed=count)
    siblings = LAWS[law](given)
    seen = Counter(map(tuple, siblings.tokens.tolist()))
    expected = law_of("iid" if law == "auto" else law, count)
    assert seen.keys() <= expected.keys()
    observed = [seen[tokens] for tokens in expected]
    assert chisquare(observed, np.array(list(expected.values())) * DRAWS).pvalue > RARE
    assert siblings.q is not None and siblings.drawn == (1 if law == "hu" else count)
    # what is recorded about each drawn child is the law it was drawn from
    if law == "swor":
        assert siblings.q_minus is not None
        mass = given.q.double().gather(1, siblings.tokens).cumsum(1)
        assert torch.allclose(siblings.q_minus[:, 1:], mass[:, :-1])
        assert not siblings.q_minus[:, 0].any()
    else:
        assert siblings.q_minus is None
    if law == "hu":
        assert not siblings.q.gather(1, siblings.tokens[:, 1:]).any()
        assert torch.allclose(siblings.q.sum(1), torch.ones(DRAWS))
    else:
        assert torch.equal(siblings.q, given.q)


def test_the_most_probable_come_in_order_and_ties_go_to_the_lowest_id() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, -torch.inf, 2.0], [0.0, -torch.inf, -torch.inf, -torch.inf, 0.0]])
    assert best(logits, 3).tolist() == [[1, 2, 4], [0, 4, NONE]]
    assert best(logits, 0).shape == (2, 0)
    siblings = LAWS["topk"](rows(logits, [2, 2]))
    assert siblings.tokens.tolist() == [[1, 2], [0, 4]] and siblings.drawn == 0 and siblings.q is None


@pytest.mark.parametrize("law", ["swor", "hu", "topk"])
def test_rows_with_few_tokens_have_fewer_children(law: str) -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]])
    tokens = LAWS[law](rows(logits, [3])).tokens[0].tolist()
    assert sorted(token for token in tokens if token != NONE) == [0, 2]
    assert (tokens[0] == NONE) == (law == "hu")  # the certain ones are all there is


def test_each_place_gets_as_many_certain_ones_as_it_wants() -> None:
    logits = LOGITS.expand(2, -1)
    siblings = LAWS["hu"](rows(logits, [3, 1]))
    assert siblings.tokens[0, 1:].tolist() == [0, 4] and siblings.tokens[1, 1:].tolist() == [NONE, NONE]
    assert siblings.q is not None and torch.allclose(siblings.q[1], torch.tensor(Q))


@pytest.mark.parametrize("law", LAWS)
def test_a_row_of_nan_has_no_children(law: str) -> None:
    logits = torch.stack([torch.full((5,), torch.nan), LOGITS[0]])
    tokens = LAWS[law](rows(logits, [2, 2])).tokens
    assert (tokens[0] == NONE).all() and (tokens[1] != NONE).all()
