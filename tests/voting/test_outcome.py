"""What holds of every vote: ties, abstention, representatives, the baseline, and its report."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from tests.voting.votes import clusters_of, sample, samples_of, shares, vote, weights
from voting.contract import VOTING_RULES, Cluster, Sample, Tally, VotingRule
from voting.outcome import hold, leader
from voting.rule import BaseRule, read_values
from voting.rules.sc import SelfConsistency


def rule_of(name: str) -> tuple[VotingRule, dict[str, Any]]:
    """A rule with its defaults."""
    return VOTING_RULES.get(name), read_values(VOTING_RULES.get(name), {}, 16)


class Fixed(BaseRule):
    """Says what it is told."""

    name = "fixed"

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def tally(self, *_: Any) -> Tally:
        return self._tally


def test_ties_go_to_the_larger_sum_of_q_then_to_the_first_member() -> None:
    assert vote("sc", samples_of(("a", 0.2), ("b", 0.5), ("a", 0.3), ("b", 0.4))).answer == "b"
    assert vote("sc", samples_of(("a", 0.5), ("b", 0.2), ("b", 0.3), ("a", 0.4))).answer == "a"
    equal = vote("sc", samples_of(("b", 0.5), ("a", 0.5)))
    assert (equal.answer, equal.tie, equal.confidence) == ("b", True, 0.5)
    assert not vote("sc", samples_of(("b", 0.5), ("a", 0.5), ("a", 0.1))).tie


def test_the_sum_of_q_counts_equal_completions_once() -> None:
    twice = [sample(0, "a", 0.4), sample(1, "a", 0.4, token_ids=(0, 1000)), sample(2, "b", 0.3), sample(3, "b", 0.3)]
    assert vote("sc", twice).answer == "b"


@pytest.mark.parametrize(("difference", "tie"), [(0.0, True), (0.9e-12, True), (1.1e-12, False)])
def test_weights_are_tied_below_a_relative_difference(difference: float, tie: bool) -> None:
    clusters = [Cluster("a", "a", 0, (0,)), Cluster("b", "b", 0, (1,))]
    for scale in (1.0, 1e-9, 1e9):
        found = leader((scale * (1 - difference), scale), clusters, samples_of(("a", 0.9), ("b", 0.1)))
        assert found == ((0, True) if tie else (1, False))


def test_without_log_probabilities_the_first_member_decides() -> None:
    unknown = [Sample(0, "x", "b"), Sample(1, "y", "a"), Sample(2, "z", None)]
    outcome = vote("sc", unknown)
    assert (outcome.answer, outcome.representative, outcome.tie) == ("b", 0, True)
    records = outcome.records()
    assert records[0]["q"] is None and records[0]["sum_logprob"] is None
    assert records[2]["cluster"] is None and records[2]["abstain_reason"] == "no_answer"


def test_the_representative_is_the_most_probable_then_the_first() -> None:
    assert vote("sc", samples_of(("a", 0.2), ("b", 0.9), ("a", 0.6), ("a", 0.6))).representative == 2


def test_the_representative_is_not_one_that_was_discarded() -> None:
    samples = samples_of(("a", 0.2), ("a", 0.9), ("a", 0.6))
    clusters = clusters_of(samples)
    assert hold(samples, clusters, Fixed(Tally((1.0,), pruned={1: "why"})), {}).representative == 2
    everything = Tally((0.0,), pruned={0: "why", 1: "why", 2: "why"})
    assert hold(samples, clusters, Fixed(everything), {}).representative == 1


def test_abstaining_samples_count_in_no_denominator() -> None:
    outcome = vote("sc", samples_of(("a", 0.5), (None, 0.9), ("b", 0.5), (None, 0.9), ("a", 0.5)))
    assert outcome.abstain_rate == 0.4
    assert shares(outcome) == {"a": pytest.approx(2 / 3), "b": pytest.approx(1 / 3)}


def test_a_stated_reason_makes_a_sample_with_an_answer_abstain() -> None:
    samples = samples_of(("a", 0.9), ("a", 0.9), ("b", 0.5))
    samples[:2] = [replace(one, abstain_reason="truncated") for one in samples[:2]]
    outcome = vote("sc", samples)
    assert (outcome.answer, outcome.confidence) == ("b", 1.0)
    stale = [Cluster("a", "a", 0, (0, 1)), Cluster("b", "b", 0, (2,))]  # made before somebody set the reasons
    assert hold(samples, stale, SelfConsistency(), {}) == outcome


def test_all_abstain() -> None:
    outcome = vote("rpc", samples_of((None, 0.2), (None, 0.7), (None, 0.7)))
    assert (outcome.answer, outcome.confidence, outcome.representative) == (None, None, 1)
    assert (outcome.fallback, outcome.abstain_rate, outcome.baseline) == ("all_abstain", 1.0, None)
    assert vote("sc", [Sample(0, "x"), Sample(1, "y")]).representative == 0


def test_who_abstains_by_the_rule_is_in_the_baseline_only() -> None:
    samples = [
        sample(0, "a", text="Confidence: 20"),
        *(sample(index, "b", 0.9, text="I am sure") for index in (1, 2)),
        sample(3, "c", text="Confidence: 0"),
    ]
    outcome = vote("verbalised", samples)
    assert weights(outcome) == {"a": 0.2, "c": 0.0}
    assert outcome.baseline == ("b", 0.5)
    assert outcome.abstain_rate == 0.5
    silent = vote("verbalised", samples[1:3])
    assert (silent.fallback, silent.answer, silent.baseline) == ("all_abstain", None, ("b", 1.0))


def test_a_cluster_is_called_by_its_first_member_that_is_left() -> None:
    samples = [
        sample(0, "1/2", text="no idea"),
        sample(1, "3", text="Confidence: 10"),
        sample(2, "0.5", text="Confidence: 90"),
    ]
    clusters = [Cluster("1/2", "1/2", 1, (0, 2)), Cluster("3", "3", 0, (1,))]
    rule, values = rule_of("verbalised")
    outcome = hold(samples, clusters, rule, values)
    assert [(one.answer, one.members) for one in outcome.clusters] == [("3", (1,)), ("0.5", (2,))]
    assert outcome.answer == "0.5"


def test_zero_weight_still_prefers_an_answer_and_says_so() -> None:
    outcome = vote("verbalised", [sample(0, "a", 0.1, text="Confidence: 0"), sample(1, "b", 0.2, text="Confidence: 0")])
    assert (outcome.answer, outcome.confidence, outcome.fallback, outcome.tie) == ("b", None, "no_weight", True)
    assert outcome.shares == (None, None)


def test_a_log_probability_that_is_no_number_makes_its_sample_abstain() -> None:
    samples = samples_of(("a", 0.5), ("b", 0.5), ("b", 0.5))
    for bad in (math.nan, -math.inf):
        samples[1:] = [replace(one, mean_logprob=bad) for one in samples[1:]]
        for rule in ("sc", "rpc"):
            outcome = vote(rule, samples)
            assert (outcome.answer, outcome.flags) == ("a", ("bad_logprob",))
            assert outcome.records()[1]["abstain_reason"] == "bad_logprob"
            json.dumps(outcome.records(), allow_nan=False)


def test_sample_weights_count_unless_they_are_not_to() -> None:
    samples = [sample(0, "a", weight=3.0), sample(1, "b"), sample(2, "b")]
    assert weights(vote("sc", samples)) == {"a": 3.0, "b": 2.0}
    assert vote("sc", samples).baseline == ("a", 0.6)
    plain = hold(samples, clusters_of(samples), SelfConsistency(), {}, use_sample_weights=False)
    assert (plain.answer, plain.baseline) == ("b", ("b", 2 / 3))


@pytest.mark.parametrize("rule", ["pc", "rpc", "ppl"])
def test_path_probabilities_take_no_sample_weights(rule: str) -> None:
    samples = samples_of(("a", 0.5), ("b", 0.6))
    weighed = [replace(one, weight=1.0 + 8 * (one.index == 0)) for one in samples]
    assert vote(rule, samples).tally == vote(rule, weighed).tally


@pytest.mark.parametrize(
    ("rule", "params"),
    [
        ("complexity", {"keep": 1.0}),
        ("bon", {"aggregate": "cluster_sum"}),
        ("bon", {"aggregate": "softmax"}),
        ("deepconf", {}),
        ("iew", {}),
        ("verbalised", {}),
    ],
)
def test_counts_and_scores_are_multiplied_by_sample_weights(rule: str, params: dict[str, Any]) -> None:
    samples = samples_of(("a", 0.5), ("b", 0.6), ("a", 0.4))
    once, twice = vote(rule, samples, **params), vote(rule, [replace(samples[0], weight=2.0), *samples[1:]], **params)
    more = once.tally.sample_weights[0]
    assert weights(twice) == {"a": pytest.approx(weights(once)["a"] + more), "b": weights(once)["b"]}


def test_order_of_the_list_is_not_order_of_the_samples() -> None:
    samples = samples_of(("a", 0.5), ("b", 0.5), (None, 0.5), ("b", 0.1))
    clusters = clusters_of(samples)
    rule, values = rule_of("rpc")
    assert hold(samples[::-1], clusters[::-1], rule, values) == hold(samples, clusters, rule, values)


def test_the_report() -> None:
    samples = [
        sample(0, "a"),
        sample(1, "b", 0.8),
        sample(2, "a", 0.25),
        sample(3, None),
        sample(4, "a", token_ids=(0, 1000)),
    ]
    rule, values = rule_of("pc")
    outcome = hold(samples, clusters_of(samples), rule, values, flags=["off_model"])
    assert outcome.report() == {
        "used_samples": 5,
        "k_distinct": 4,
        "dedupe_key": "token_ids",
        "answer": "b",
        "confidence": pytest.approx(0.8 / 1.55),
        "tie": False,
        "abstain_rate": 0.2,
        "clusters": [
            {"id": 0, "answer": "a", "key": "a", "rung": 0, "count": 3, "weight": pytest.approx(0.75)}
            | {"share": pytest.approx(0.75 / 1.55), "members": [0, 2, 4]},
            {"id": 1, "answer": "b", "key": "b", "rung": 0, "count": 1, "weight": pytest.approx(0.8)}
            | {"share": pytest.approx(0.8 / 1.55), "members": [1]},
        ],
        "baseline_sc": {"answer": "a", "share": 0.75},
        "pruned": [],
        "abstained": [{"index": 3, "reason": "no_answer"}],
        "pruning": None,
        "details": {},
        "weight_source": "raw",
        "fallback": None,
        "flags": ["off_model"],
    }
    first = outcome.records()[0]
    assert first["weight"] == first["q"] == math.exp(first["mean_logprob"])
    assert first["sum_logprob"] == 2 * first["mean_logprob"]
    assert first["token_ids"] == [0, 1000] and first["cluster"] == 0 and first["pruned"] is False
    assert [record["weight"] for record in outcome.records()[3:]] == [0.0, 0.0]  # one abstains, one is a repetition
    assert (
        hold([replace(one, token_ids=None) for one in samples], clusters_of(samples), rule, values).report()[
            "dedupe_key"
        ]
        == "text"
    )


def test_records_have_no_infinite_numbers() -> None:
    odd = [
        sample(0, "a", scores={"judge": math.nan}),
        sample(1, "a", confidences=(math.inf, 1.0), scores={"judge": 1.0}),
        sample(2, "b", scores={"judge": 0.5}),
    ]
    records = vote("bon", odd).records()
    json.dumps(records, allow_nan=False)
    assert records[0]["scores"] == {"judge": None} and records[0]["abstain_reason"] == "no_score"
    assert records[1]["confs"] == [None, 1.0]
    assert vote("deepconf", odd).records()[1]["abstain_reason"] == "bad_logprob"


def test_a_vote_needs_samples() -> None:
    with pytest.raises(ValueError, match="nothing to vote on"):
        hold([], [], SelfConsistency(), {})
