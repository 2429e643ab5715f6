"""The automaton against a search through the whole text, and drafts grown on it against all trees there are."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.rng import Noise, Stream
from spec_decode.contract import DRAFT_SOURCES, DraftAdmission, DraftPlan
from spec_decode.drafters import Suffix
from spec_decode.drafters.automaton import SuffixAutomaton
from spec_decode.drafters.growth import Continuation, Grown, Growth, Match
from spec_decode.tree_forms import chain, depths, sequences, static
from tests.spec_decode.counting import Searched

NO_NOISE = Noise(np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64))
few_tokens = st.lists(st.integers(0, 2), min_size=1, max_size=50)
plans = st.one_of(
    st.builds(lambda depth: DraftPlan(depth, depth, chain(depth)), st.integers(1, 6)),
    st.sampled_from(
        [
            DraftPlan(6, 3, sequences(2, 3)),
            DraftPlan(7, 3, static((3, 2, 1), 7)),
            DraftPlan(0, 0, ()),
            DraftPlan(12, 4, None, 3),
            DraftPlan(5, 2, None, 2),
            DraftPlan(20, 3, None, 1),
        ]
    ),
)
growths = st.builds(
    Growth,
    st.sampled_from([0.5, 1.0, 2.0, 8.0]),
    st.integers(-2, 4),
    st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    st.sampled_from([frozenset[int](), frozenset({2})]),
)


def automaton(text: list[int], depth: int) -> SuffixAutomaton:
    made = SuffixAutomaton(depth)
    for token in text:
        made.append(token)
    return made


@settings(max_examples=150, deadline=None)
@given(few_tokens, st.integers(2, 8))
def test_every_count_along_every_match_is_right(text: list[int], depth: int) -> None:
    fast, slow = automaton(text, depth), Searched([], text, depth)
    lengths = {match.length: match.place for match in slow.matches()}
    found = list(fast.matches())
    assert [match.length for match in found] == sorted((match.length for match in found), reverse=True)
    assert max(lengths, default=0) == max((match.length for match in found), default=0)
    for match in found:
        pairs = [(match.place, lengths[match.length])]
        for _ in range(4):  # what follows, and what follows that
            below = []
            for place, stretch in pairs:
                mine = {one.token: one for one in fast.continuations(place)}
                other = {one.token: one for one in slow.continuations(stretch)}
                assert {token: one.times for token, one in mine.items()} == {
                    token: one.times for token, one in other.items()
                }
                below += [(one.place, other[token].place) for token, one in mine.items()]
            pairs = below[:9]


@settings(max_examples=250, deadline=None)
@given(few_tokens, st.integers(2, 8), growths, plans)
def test_drafts_are_those_of_a_search_over_every_length(
    text: list[int], depth: int, growth: Growth, plan: DraftPlan
) -> None:
    fast, slow = automaton(text, depth), Searched([], text, depth)
    mine = growth.best(fast.matches(), fast.continuations, plan)
    other = growth.best(slow.matches(), slow.continuations, plan)
    assert mine == other
    assert len(mine.tokens) <= plan.max_nodes
    assert max(depths(tuple(mine.parents)), default=0) <= plan.max_depth


@settings(max_examples=100, deadline=None)
@given(few_tokens, few_tokens, few_tokens)
def test_a_copy_goes_its_own_way(text: list[int], one: list[int], two: list[int]) -> None:
    first = automaton(text, 5)
    second = first.copy()
    for token in one:
        first.append(token)
    for token in two:
        second.append(token)
    growth, plan = Growth(2.0, 2, 0.0), DraftPlan(12, 4, None, 3)
    for made, whole in ((first, text + one), (second, text + two)):
        fresh = automaton(whole, 5)
        assert growth.best(made.matches(), made.continuations, plan) == growth.best(
            fresh.matches(), fresh.continuations, plan
        )


def unequal(place: tuple[int, ...]) -> list[Continuation[tuple[int, ...]]]:
    """Three tokens behind every place, no two nodes of the tree with the same share."""
    rng = random.Random(str(place))
    return [Continuation(token, rng.randrange(1, 10**6), (*place, token)) for token in range(3)]


def by_definition(growth: Growth, plan: DraftPlan) -> set[tuple[int, ...]]:
    """Level by level the best nodes get their best children; of all of these, the best are kept (EAGLE-2)."""
    level: list[tuple[float, tuple[int, ...]]] = [(1.0, ())]
    nodes = []
    for _ in range(plan.max_depth):
        grown = []
        for share, place in sorted(level, reverse=True)[: plan.top_k]:
            total = sum(one.times for one in unequal(place))
            children = sorted(((share * one.times / total, one.place) for one in unequal(place)), reverse=True)
            grown += [child for child in children[: plan.top_k] if child[0] >= growth.min_prob]
        nodes += grown
        level = grown
    return {place for _, place in sorted(nodes, reverse=True)[: plan.max_nodes]}


@pytest.mark.parametrize("top_k", [1, 2, 3, 30])
@pytest.mark.parametrize("nodes", [1, 3, 8, 25, 100])
@pytest.mark.parametrize("min_prob", [0.0, 0.02])
def test_trees_grow_where_they_are_probable(top_k: int, nodes: int, min_prob: float) -> None:
    growth, plan = Growth(1.0, 0, min_prob), DraftPlan(nodes, 4, None, top_k)
    root: Match[tuple[int, ...]] = Match(1000, ())
    grown = growth.best([root], unequal, plan)
    places: list[tuple[int, ...]] = []
    for token, parent in zip(grown.tokens, grown.parents, strict=True):
        places.append((*(places[parent] if parent >= 0 else ()), token))
    assert set(places) == by_definition(growth, plan) and len(set(places)) == len(places)


def test_the_frequent_and_long_win() -> None:
    # behind 1 2 there was 3 twice and 4 once; behind 0 9 1 2 only 4
    text = [1, 2, 3, 0, 1, 2, 3, 0, 9, 1, 2, 4, 0, 9, 1, 2]
    made = automaton(text, 8)
    plan = DraftPlan(4, 4, chain(4))
    growth = Growth(1.0, 0, 0.1)
    grown = growth.best(made.matches(), made.continuations, plan)
    assert grown == Grown([4, 0, 9, 1], [-1, 0, 1, 2], 4.0, 4)
    made.append(3)  # which had never followed 9 1 2: the longest match is 1 2 3, behind which was only 0
    grown = growth.best(made.matches(), made.continuations, DraftPlan(5, 2, static((2, 2), 5)))
    assert grown == Grown([0, 1, 9], [-1, 0, 0], 2.0, 3)


def test_a_share_as_large_as_the_least_is_enough_and_no_smaller_one() -> None:
    made = automaton([1, 2, 9, 1, 3, 9, 1], 8)  # behind 9 1 was 3, behind 1 each of two
    plan = DraftPlan(2, 1, static((2,), 2))
    for min_prob, tokens in ((0.5, [2, 3]), (0.51, [])):
        growth = Growth(1.0, 1, min_prob)
        [_, short] = made.matches()
        assert growth.best([short], made.continuations, plan).tokens == tokens


@pytest.mark.parametrize("plan", [DraftPlan(4, 4, chain(4)), DraftPlan(4, 4, None, 1)])
def test_nothing_grows_behind_an_ending(plan: DraftPlan) -> None:
    made = automaton([1, 2, 3, 4, 5, 1], 8)
    assert Growth(8.0, 0, 0.1).best(made.matches(), made.continuations, plan).tokens == [2, 3, 4, 5]
    assert Growth(8.0, 0, 0.1, frozenset({3})).best(made.matches(), made.continuations, plan).tokens == [2, 3]


def test_looping_text_costs_as_little_as_any() -> None:
    begun = time.process_time()
    made = automaton([7] * 20_000, 24)  # every ending has occurred: the worst case for counting
    assert time.process_time() - begun < 5  # 0.1 s; without a limit to what is counted, over ten
    [first, *_] = made.matches()
    assert first.length == 19_999
    assert made.continuations(first.place)[0].times == 20_000 - 23


def test_the_source_proposes_for_its_slots() -> None:
    source = DRAFT_SOURCES.get("suffix")
    assert isinstance(source, Suffix) and source.branches and not source.draws
    drafter = source.new_drafter()
    options = {param.name: param.neutral for param in source.params}
    drafter.admit(4, DraftAdmission([5, 6, 7, 8, 5, 6], 4, options))
    drafter.admit(2, DraftAdmission([1], 1, options))
    drafter.fork(4, 0, Stream(0, 1))
    drafter.commit(0, [7])
    plan = DraftPlan(5, 5, chain(5))
    trees = drafter.propose([4, 2, 0], [plan] * 3, NO_NOISE)
    assert [tree.tokens.tolist() for tree in trees] == [[7, 8], [], [8, 5, 6]]
    assert [tree.matched for tree in trees] == [2, 0, 3]
    drafter.free(4, keep=True)
