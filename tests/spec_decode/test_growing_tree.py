"""Which places of a tree get children, wave by wave."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from spec_decode.contract import DraftPlan, DraftTree, Law
from spec_decode.drafters.growing_tree import GrowingTree
from spec_decode.tree_forms import chain, halving, sequences, static

VOCAB = 7


def row(path: tuple[int, ...]) -> list[float]:
    """What a model says behind a path."""
    return np.random.default_rng([5, *path]).dirichlet(np.full(VOCAB, 0.5)).tolist()


def path(tree: GrowingTree, node: int) -> tuple[int, ...]:
    return () if node < 0 else (*path(tree, tree.parents[node]), tree.tokens[node])


def grown(
    plan: DraftPlan, drawn: bool = False, ending_ids: frozenset[int] = frozenset(), deepest: int = 99
) -> DraftTree:
    """A tree of the most probable tokens. drawn: of tokens that are recorded as drawn, by what is as good as chance."""
    tree = GrowingTree(plan, not drawn, ending_ids, deepest)
    waves = 0
    while places := tree.wave():
        waves += 1
        for place in places:
            q = row(path(tree, place.node))
            random = np.random.default_rng([6, place.lane])
            order = random.permutation(VOCAB) if drawn else np.argsort(-np.array(q))
            tokens = order[: place.count].tolist()
            tree.add(place, tokens, place.count * drawn, place.lane, scores=[math.log(q[token]) for token in tokens])
    assert waves <= plan.max_depth
    found = tree.finish(torch.zeros(99, VOCAB))
    found.check()
    return found


@pytest.mark.parametrize("form", [chain(4), sequences(3, 2), static(halving(4, 4), 13), static((2, 2, 2), 14)])
def test_a_form_is_filled(form: tuple[int, ...]) -> None:
    tree = grown(DraftPlan(len(form), 4, form))
    assert tuple(tree.parents.tolist()) == form
    assert (tree.laws == Law.ONE_HOT).all() and tree.q is None


def test_nothing_grows_behind_an_ending_or_too_deep() -> None:
    form = static((3, 2, 2), 21)
    whole = grown(DraftPlan(21, 3, form))
    ending = int(whole.tokens[1])
    tree = grown(DraftPlan(21, 3, form), ending_ids=frozenset({ending}))
    assert ending in tree.tokens
    assert all(tree.tokens[parent] != ending for parent in tree.parents if parent >= 0)
    assert len(tree.tokens) < 21
    for deepest in range(3):
        assert grown(DraftPlan(21, 3, form), deepest=deepest).depths.max() == deepest + 1
    assert not len(grown(DraftPlan(21, 3, form), deepest=-1).tokens)


def test_children_that_are_missing_are_the_last_ones_of_the_form() -> None:
    tree = GrowingTree(DraftPlan(5, 2, (-1, -1, -1, 0, 1)), False, (), 9)
    [root] = tree.wave()
    tree.add(root, [-1, 4, 5], 1, 0)
    places = tree.wave()
    assert [(place.node, place.count) for place in places] == [(0, 1), (1, 1)]
    assert tree.tokens == [4, 5]
    lanes = [root.lane, root.lane + 1, root.lane + 2, *(place.lane for place in places)]
    assert len(set(lanes)) == 5  # no random number is used twice


def test_a_tree_without_children_is_complete() -> None:
    tree = GrowingTree(DraftPlan(5, 2, None, 2), False, (), 9)
    [root] = tree.wave()
    tree.add(root, [-1, -1], 2, 0, scores=[0.0, 0.0])
    assert tree.wave() == [] and len(tree.finish(None).tokens) == 0


def test_gains_are_those_of_the_form() -> None:
    tree = GrowingTree(DraftPlan(3, 2, (-1, -1, 1), gains=(0.5, 0.25, 0.2)), True, (), 9)
    [root] = tree.wave()
    assert tree.reached(root.node) == 1.0
    tree.add(root, [4, 5], 0, 0)
    [place] = tree.wave()
    assert (place.node, tree.reached(place.node)) == (1, 0.25)
    assert GrowingTree(DraftPlan(1, 1, (-1,)), True, (), 9).reached(-1) is None


@pytest.mark.parametrize(("nodes", "depth", "top_k"), [(12, 3, 3), (30, 4, 2), (1, 1, 1), (5, 2, 7)])
def test_certain_trees_keep_the_most_probable_nodes(nodes: int, depth: int, top_k: int) -> None:
    """By brute force: the best `top_k` of each level get children; of everything the best are kept."""
    tree = grown(DraftPlan(nodes, depth, None, top_k))
    level: list[tuple[int, ...]] = [()]
    scores: dict[tuple[int, ...], float] = {(): 0.0}
    for _ in range(depth):
        new = []
        for above in level:
            q = row(above)
            for token in np.argsort(-np.array(q))[:top_k].tolist():
                scores[(*above, token)] = scores[above] + math.log(q[token])
                new.append((*above, token))
        level = sorted(new, key=lambda one: -scores[one])[:top_k]
    wanted = sorted((one for one in scores if one), key=lambda one: -scores[one])[:nodes]
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    assert set(paths) == set(wanted)


@pytest.mark.parametrize(("nodes", "depth", "top_k"), [(12, 3, 3), (30, 4, 2), (7, 8, 1), (9, 1, 4), (10, 2, 3)])
def test_drawn_trees_grow_where_what_was_drawn_is_probable(nodes: int, depth: int, top_k: int) -> None:
    tree = grown(DraftPlan(nodes, depth, None, top_k), drawn=True)
    assert len(tree.tokens) <= nodes and tree.depths.max() <= depth
    assert (tree.laws == Law.DENSE).all() and (np.bincount(tree.parents + 1) <= top_k).all()
    assert max(np.bincount(tree.depths[sorted(set(tree.parents[tree.parents >= 0]))], minlength=1)) <= top_k
    if depth > 1 and top_k > 1:  # the second place is the best of the first children
        first = tree.tokens[tree.parents == -1].tolist()
        second = next(parent for parent in tree.parents.tolist() if parent >= 0)
        assert tree.tokens[second] == max(first, key=lambda token: row(())[token])


def test_there_are_no_more_waves_than_levels() -> None:
    tree = GrowingTree(DraftPlan(15, 3, None, 3), False, {1, 2}, 9)
    for _ in range(3):
        for place in tree.wave():
            tree.add(place, [1, 2, 3] if place.node < 0 else [4, 5, 6], 3, 0, scores=[-1.0, -1.0, -1.0])
    assert tree.depths == [1] * 3 + [2] * 3 + [3] * 6  # a fourth could add three more of depth 3
    assert tree.wave() == []


def test_a_drawn_node_is_there_whatever_follows_it() -> None:
    """A larger tree begins with the smaller one wherever both have asked the same."""
    small, large = (grown(DraftPlan(nodes, 4, None, 2), drawn=True) for nodes in (8, 16))
    assert len(small.tokens) == 8
    for node, parent in itertools.islice(enumerate(large.parents.tolist()), 4):
        assert (small.tokens[node], small.parents[node]) == (large.tokens[node], parent)
