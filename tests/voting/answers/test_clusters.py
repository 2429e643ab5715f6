"""Samples are put together by what they answer: keys, numbers up to a factor of 100, and pairs found equal."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voting.answers.clusters import partition
from voting.answers.equivalence import Equivalence, read_equivalence
from voting.answers.math_pool import Comparison
from voting.answers.published import SCALES, TOLERANCE, closure
from voting.contract import Cluster, Sample

MATH = read_equivalence("math_verify")


def samples(*answers: str | tuple[str, bool] | None) -> list[Sample]:
    """A letter in a tuple is an option."""
    return [
        Sample(index, "", *(answer if isinstance(answer, tuple) else (answer,))) for index, answer in enumerate(answers)
    ]


class Relation:
    """Stands in for math-verify: these pairs are equal."""

    def __init__(self, *pairs: str, complete: bool = True) -> None:
        self._pairs = {frozenset(pair) for pair in pairs}
        self._complete = complete
        self.asked: list[tuple[Any, ...]] = []

    def __call__(self, keys: Sequence[str], symmetric: str, budget_s: float) -> Comparison:
        self.asked.append((list(keys), symmetric, budget_s))
        pairs = ((i, j) for j in range(len(keys)) for i in range(j) if frozenset((keys[i], keys[j])) in self._pairs)
        return Comparison(frozenset(pairs), self._complete)


def members(answers: Sequence[Any], equivalence: Equivalence, compare: Any = None) -> list[tuple[int, ...]]:
    return [cluster.members for cluster in partition(samples(*answers), equivalence, compare).clusters]


def test_clusters_come_by_first_member_and_know_their_rung() -> None:
    found = partition(samples("x", "0.5", None, "1/2", "x.", "y", "y", ("b", True), ("B", True)), Equivalence())
    assert found.clusters == (
        Cluster("x", "x", 0, (0, 4)),
        Cluster("0.5", "1/2", 1, (1, 3)),
        Cluster("y", "y", 0, (5, 6)),
        Cluster("b", "B", 2, (7, 8)),
    )
    assert found.flags == ()


def test_numbers_spelled_alike_are_merged_by_rung_0() -> None:
    assert [cluster.rung for cluster in partition(samples("0.5", "$0.5$."), Equivalence()).clusters] == [0]


def test_who_abstains_is_in_no_cluster() -> None:
    given = [Sample(0, "", "1", abstain_reason="truncated"), Sample(1, "", None), Sample(2, "", "1")]
    assert [cluster.members for cluster in partition(given, Equivalence()).clusters] == [(2,)]
    assert partition(given[:2], Equivalence()).clusters == ()
    assert partition([], Equivalence()).clusters == ()


ANSWERS = st.sampled_from(
    [
        "1/2",
        "0.5",
        "50%",
        "50",
        "5000",
        "x",
        "x.",
        "$x$",
        "2/4",
        "b",
        "B",
        "yes",
        "Yes",
        ".5",
        "0.5001",
        "1,000",
        "1000",
    ]
)
VOTES = st.lists(st.one_of(st.none(), ANSWERS, st.sampled_from([("b", True), ("B", True), ("a", True)])), max_size=10)
LEVELS = st.sampled_from(["string", "exact", "published", {"name": "exact", "percent": "unit"}])


@given(VOTES, LEVELS, st.randoms(use_true_random=False))
def test_order_does_not_matter_on_rungs_0_to_2(answers: list[Any], equiv: Any, random: Any) -> None:
    order = list(range(len(answers)))
    random.shuffle(order)
    plain = members(answers, read_equivalence(equiv))
    shuffled = members([answers[place] for place in order], read_equivalence(equiv))
    assert {frozenset(order[place] for place in one) for one in shuffled} == {frozenset(one) for one in plain}
    assert sorted(place for one in plain for place in one) == [i for i, one in enumerate(answers) if one is not None]
    assert plain == sorted(plain)


@given(VOTES, LEVELS)
def test_the_order_in_which_samples_are_given_does_not_matter(answers: list[Any], equiv: Any) -> None:
    given = samples(*answers)
    assert partition(given[::-1], read_equivalence(equiv)) == partition(given, read_equivalence(equiv))


@given(VOTES, st.sets(st.tuples(ANSWERS, ANSWERS), max_size=8))
def test_no_rung_splits_what_a_lower_one_merges(answers: list[Any], pairs: set[tuple[str, str]]) -> None:
    relation = Relation(*(tuple(pair) for pair in pairs))  # type: ignore[arg-type]
    ladder = ["string", "exact", "math_verify"], ["string", "exact", "published"]
    for levels in ladder:
        finer = members(answers, read_equivalence(levels[0]))
        for level in levels[1:]:
            coarser = members(answers, read_equivalence(level), relation)
            assert all(any(set(one) <= set(other) for other in coarser) for one in finer)
            finer = coarser


@given(st.lists(st.sampled_from("abcdef"), max_size=12), st.sets(st.tuples(*[st.sampled_from("abcdef")] * 2)))
def test_all_pairs_of_a_cluster_are_equal(answers: list[str], pairs: set[tuple[str, str]]) -> None:
    equal = {frozenset(pair) for pair in pairs}
    found = partition(samples(*answers), MATH, Relation(*("".join(pair) for pair in pairs)))
    for cluster in found.clusters:
        inside = {answers[place] for place in cluster.members}
        assert all(frozenset((one, other)) in equal for one in inside for other in inside if one != other)
        assert cluster.rung == (3 if len(inside) > 1 else 0)
        assert cluster.answer == cluster.key == answers[cluster.members[0]]
    of = {answers[place]: number for number, one in enumerate(found.clusters) for place in one.members}
    torn = any(len({of[answer] for answer in pair if answer in of}) > 1 for pair in equal)
    assert (found.flags == ("relation_not_transitive",)) == torn


def test_complete_link_goes_by_first_appearance() -> None:
    relation = Relation("ab", "bc")
    assert members("abc", MATH, relation) == [(0, 1), (2,)]
    assert members("cab", MATH, relation) == [(0, 2), (1,)]
    assert members("acb", MATH, relation) == [(0, 2), (1,)]
    assert partition(samples(*"abc"), MATH, relation).flags == ("relation_not_transitive",)


def test_math_verify_is_asked_once_about_distinct_keys() -> None:
    relation = Relation("ab", complete=False)
    equiv = read_equivalence({"name": "math_verify", "symmetric": "or", "equiv_budget_ms": 100})
    found = partition(samples("a", "1/2", "a.", "0.5", "b", None), equiv, relation)
    assert relation.asked == [(["a", "1/2", "b"], "or", 0.1)]
    assert found.flags == ("equiv_truncated",)
    assert found.clusters[0] == Cluster("a", "a", 3, (0, 2, 4))


def test_letters_of_options_are_no_formulas() -> None:
    relation = Relation("AB", "ab")
    assert members([("a", True), ("B", True)], MATH, relation) == [(0,), (1,)]
    assert members(["a", "b"], MATH, relation) == [(0, 1)]


def test_rung_3_needs_something_that_compares() -> None:
    with pytest.raises(ValueError, match="rung 3"):
        partition(samples("a"), MATH)


def test_published_merges_factors_of_100() -> None:
    published = read_equivalence("published")
    assert members(["0.5", "50", "x", "5000", "1/2", "0.6", "50%"], published) == [(0, 1, 3, 4, 6), (2,), (5,)]
    assert members(["0.3333", "1/3", "33.33"], published) == [(0, 1, 2)]
    assert members(["50.05", "0.5"], published) == [(0, 1)]  # the tolerance is at the scale of 0.5
    assert members(["0.5", "50.2"], published) == [(0,), (1,)]
    found = partition(samples("0.5", "50"), published)
    assert found.clusters == (Cluster("0.5", "1/2", 1, (0, 1)),)
    assert found.flags == ("relation_not_transitive",)
    assert partition(samples("0.5", "1/2"), published).flags == ()


@given(st.lists(st.fractions(min_value=-200, max_value=200, max_denominator=2000), unique=True, max_size=10))
def test_the_closure_by_brute_force(numbers: list[Fraction]) -> None:
    numbers += [100 * number + Fraction(1, 2000) for number in numbers[:3]]
    labels = list(range(len(numbers)))
    for i, one in enumerate(numbers):
        for j, other in enumerate(numbers):
            if any(abs(scale * one - other) <= TOLERANCE for scale in SCALES):
                labels = [labels[i] if label == labels[j] else label for label in labels]
    found = closure(numbers)
    for i in range(len(numbers)):
        for j in range(len(numbers)):
            assert (labels[i] == labels[j]) == (found[i] == found[j])
