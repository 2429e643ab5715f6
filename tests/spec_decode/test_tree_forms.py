"""Forms of trees, and the best of them against all there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from spec_decode.contract import DraftTree
from spec_decode.optimal_tree import optimal_tree
from spec_decode.tree_forms import Form, chain, depths, halving, part, ranks, sequences, static


def test_forms() -> None:
    assert chain(0) == () and chain(3) == (-1, 0, 1)
    assert sequences(2, 3) == (-1, -1, 0, 1, 2, 3)
    assert sequences(3, 1) == (-1, -1, -1)
    assert static((2, 2, 1), 100) == (-1, -1, 0, 0, 1, 1, 2, 3, 4, 5)
    assert static((2, 2, 1), 5) == (-1, -1, 0, 0, 1)
    assert static((1, 1, 1), 64) == chain(3)
    assert halving(4, 5) == (4, 2, 1, 1, 1) and halving(3, 3) == (3, 1, 1) and halving(1, 2) == (1, 1)


def test_depths_ranks_and_parts() -> None:
    form = static((2, 2), 6)
    assert depths(form) == (1, 1, 2, 2, 2, 2)
    assert list(depths(form)) == DraftTree.one_hot(range(6), form).depths.tolist()
    assert ranks(form) == (0, 1, 0, 1, 0, 1)
    assert part(form, {0, 1, 5}) == (-1, -1, 1)
    assert part(form, []) == ()


def every_form(nodes: int) -> Iterator[Form]:
    for parents in itertools.product(*(range(-1, node) for node in range(nodes))):
        if list(parents) == sorted(parents):  # level by level: each tree once, siblings side by side
            yield parents


def tokens_per_step(form: Form, acceptance: list[float]) -> float:
    """One and the chances of all nodes to be accepted."""
    chances: list[float] = []
    for parent, rank in zip(form, ranks(form), strict=True):
        own = acceptance[rank] if rank < len(acceptance) else 0.0
        chances.append(own * (chances[parent] if parent >= 0 else 1.0))
    return 1 + sum(chances)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("max_depth", [1, 2, 6])
def test_no_tree_beats_the_optimal_one(seed: int, max_depth: int) -> None:
    rng = np.random.default_rng(seed)
    siblings = int(rng.integers(1, 4))
    acceptance = np.sort(rng.dirichlet(np.ones(siblings + 1))[:siblings])[::-1].tolist()
    draft, row = rng.uniform(0, 0.4), rng.uniform(0, 0.3)

    def cost(nodes: int, depth: int) -> float:
        return 1 + depth * draft + nodes * row

    found = optimal_tree(acceptance, 6, max_depth, cost)
    assert max(depths(found.form), default=0) == found.depth <= max_depth
    assert tokens_per_step(found.form, acceptance) == pytest.approx(found.expected)
    rates = [
        tokens_per_step(form, acceptance) / cost(len(form), max(depths(form), default=0))
        for nodes in range(7)
        for form in every_form(nodes)
        if max(depths(form), default=0) <= max_depth
    ]
    assert found.expected / cost(len(found.form), found.depth) == pytest.approx(max(rates))


def test_free_drafts_fill_the_tree_and_dear_ones_leave_it_empty() -> None:
    full = optimal_tree([0.6, 0.2], 10, 4, lambda nodes, depth: 1.0)
    assert len(full.form) == 10
    assert tokens_per_step(full.form, [0.6, 0.2]) == pytest.approx(
        full.expected
    )  # the larger trees are below the first
    assert optimal_tree([0.6, 0.2], 10, 4, lambda nodes, depth: 1.0 + nodes).form == ()
    assert optimal_tree([0.9], 10, 4, lambda nodes, depth: 1.0).form == chain(4)


def test_a_sibling_that_is_never_accepted_is_worth_nothing() -> None:
    best = optimal_tree([0.6, 0.0], 6, 6, lambda nodes, depth: 1.0)
    assert best.form == chain(6) and np.isfinite(best.expected)
