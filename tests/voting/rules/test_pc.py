"""Perplexity consistency: its invariants, and its error against enumeration with rationals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.voting.votes import clusters_of, sample, samples_of, shares, vote, weights
from voting.contract import VOTING_RULES, Sample
from voting.rule import read_values

PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.01, 0.99)), min_size=1, max_size=12)
THOROUGH = settings(max_examples=100, deadline=None, derandomize=True)


@THOROUGH
@given(pairs=PAIRS, again=st.integers(0, 11))
def test_a_duplicate_changes_nothing_but_the_count(pairs: list[tuple[str, float]], again: int) -> None:
    samples = samples_of(*pairs)
    one = samples[again % len(samples)]
    more = [*samples, replace(one, index=len(samples))]
    assert weights(vote("pc", more)) == weights(vote("pc", samples))
    assert weights(vote("sc", more))[str(one.answer)] == weights(vote("sc", samples))[str(one.answer)] + 1


@THOROUGH
@given(pairs=PAIRS, again=st.lists(st.integers(0, 11), max_size=12))
@pytest.mark.parametrize("rule", ["pc", "rpc"])
def test_each_duplicate_counts_like_a_path_of_its_own(
    rule: str, pairs: list[tuple[str, float]], again: list[int]
) -> None:
    samples = samples_of(*pairs)
    for which in again:
        samples.append(replace(samples[which % len(pairs)], index=len(samples)))
    apart = [replace(one, token_ids=(one.index,), n_tokens=1) for one in samples]
    each = vote(rule, samples, duplicates="each")
    assert weights(each) == pytest.approx(weights(vote(rule, apart)), rel=1e-12)
    assert each.tally.pruned == vote(rule, apart).tally.pruned


def test_the_first_value_of_equal_completions_counts() -> None:
    noisy = [sample(0, "a", 0.5), sample(1, "a", 0.5000001, token_ids=(0, 1000)), sample(2, "b", 0.25)]
    outcome = vote("pc", noisy)
    assert weights(outcome) == {"a": noisy[0].q, "b": noisy[2].q}
    assert 1 not in outcome.tally.sample_weights


def test_without_ids_equal_texts_are_equal_completions() -> None:
    texts = [sample(i, "a", 0.5, token_ids=None, text=text) for i, text in enumerate(["x", "x", "y"])]
    assert weights(vote("pc", texts)) == {"a": pytest.approx(1.0)}


@THOROUGH
@given(pairs=PAIRS, q=st.floats(0.01, 0.99))
def test_a_new_path_adds_its_q(pairs: list[tuple[str, float]], q: float) -> None:
    samples = samples_of(*pairs)
    before = weights(vote("pc", samples)).get("a", 0.0)
    after = weights(vote("pc", [*samples, sample(len(samples), "a", q)]))["a"]
    assert after == pytest.approx(before + q, rel=1e-12)


@given(pairs=PAIRS, factor=st.floats(0.1, 1.0))
@THOROUGH
def test_a_common_factor_changes_no_share(pairs: list[tuple[str, float]], factor: float) -> None:
    scaled = [(answer, q * factor) for answer, q in pairs]
    one, other = vote("pc", samples_of(*pairs)), vote("pc", samples_of(*scaled))
    assert shares(other) == pytest.approx(shares(one), rel=1e-9)


def test_a_common_exponent_may_change_the_winner() -> None:
    pairs = [("a", 0.5), ("b", 0.3), ("b", 0.3)]
    assert vote("pc", samples_of(*pairs)).answer == "b"
    assert vote("pc", samples_of(*((answer, q**4) for answer, q in pairs))).answer == "a"


@pytest.mark.parametrize("q", [0.1, 1 / 3, 0.7, 1.0])
def test_equal_q_is_the_majority_exactly(q: float) -> None:
    for answers in ("a", "ab", "aab", "abcbcaab", "aaaaaaabbb"):
        samples = samples_of(*((answer, q) for answer in answers))
        one, other = vote("pc", samples), vote("sc", samples)
        assert (one.answer, one.representative, one.tie) == (other.answer, other.representative, other.tie)
        assert shares(one) == pytest.approx(shares(other), rel=1e-15)


def test_temperature_is_no_concern_of_q() -> None:
    """q is a function of the recorded raw log-probability and nothing else of the sample."""
    assert sample(0, "a", 0.3, text="hot", scores={}).q == sample(0, "a", 0.3).q == pytest.approx(0.3)


def test_joint_probabilities_keep_their_ratios() -> None:
    short, long = sample(0, "a", 0.5, n_tokens=3), sample(1, "b", 0.5, n_tokens=5)
    assert weights(vote("pc", [short, long], score="joint")) == {"a": 1.0, "b": pytest.approx(0.25)}
    deep = [sample(0, "a", n_tokens=4000, mean_logprob=-1.0), sample(1, "b", n_tokens=4000, mean_logprob=-1.00025)]
    assert weights(vote("pc", deep, score="joint")) == {"a": 1.0, "b": pytest.approx(math.exp(-1))}


# --- the error of the estimate, enumerated


def world(p: Fraction, k: int) -> list[tuple[str, Fraction]]:
    """(answer, probability) of every path: p split evenly over k paths to one answer, the rest one path to another."""
    return [("a", p / k)] * k + [("b", 1 - p)]


def draws(p: Fraction, k: int, n: int) -> Iterator[tuple[Fraction, list[Sample]]]:
    """Every sequence of n independent paths with its probability."""
    paths = world(p, k)
    for chosen in itertools.product(range(len(paths)), repeat=n):
        probability = math.prod((paths[path][1] for path in chosen), start=Fraction(1))
        yield (
            probability,
            [sample(i, paths[path][0], float(paths[path][1]), token_ids=(path,)) for i, path in enumerate(chosen)],
        )


def estimate(rule: str, samples: list[Sample]) -> float:
    """How probable the rule takes the answer a to be."""
    of = VOTING_RULES.get(rule)
    tally = of.tally(samples, clusters_of(samples), read_values(of, {}, len(samples)))
    weight = sum(w for w, one in zip(tally.weights, clusters_of(samples), strict=True) if one.answer == "a")
    return weight / len(samples) if rule == "sc" else weight


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("p", [Fraction(1, 10), Fraction(1, 2), Fraction(4, 5)])
def test_the_error_of_counting_and_of_weighing(p: Fraction, k: int, n: int) -> None:
    cases = [(pr, estimate("sc", drawn), estimate("pc", drawn)) for pr, drawn in draws(p, k, n)]
    assert sum(pr for pr, _, _ in cases) == 1
    alpha, beta = 1 - p / k, 1 - 2 * p / k
    expected_pc = p * (1 - alpha**n)
    assert math.fsum(float(pr) * pc for pr, _, pc in cases) == pytest.approx(float(expected_pc), rel=1e-12)
    for right in (0, 1):
        squared_sc = p * (1 - p) / n + (p - right) ** 2
        squared_pc = (p - right) ** 2 - 2 * (p - right) * p * alpha**n
        squared_pc += (p / k) ** 2 * (k * alpha**n + k * (k - 1) * beta**n)
        measured_sc = math.fsum(float(pr) * (sc - right) ** 2 for pr, sc, _ in cases)
        measured_pc = math.fsum(float(pr) * (pc - right) ** 2 for pr, _, pc in cases)
        assert measured_sc == pytest.approx(float(squared_sc), rel=1e-12)
        assert measured_pc == pytest.approx(float(squared_pc), rel=1e-12)


def test_the_closed_form_that_is_usually_quoted_is_not_exact() -> None:
    p, k, n, right = Fraction(1, 10), 1, 1, 0
    alpha = 1 - p / k
    quoted = (p - right) ** 2 + alpha**n * p * (2 * right - (1 + alpha**n) * p)
    enumerated = sum(pr * (Fraction(p) * (drawn[0].answer == "a") - right) ** 2 for pr, drawn in draws(p, k, n))
    assert quoted < 0 < enumerated
