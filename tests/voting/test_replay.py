"""Replays of samples whose answers are known by hand."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from samplers.contract import SamplerError
from tests.voting.votes import sample
from voting.answers.clusters import partition
from voting.answers.equivalence import Equivalence, read_equivalence
from voting.answers.extraction import read_extraction
from voting.contract import VOTING_RULES, Sample
from voting.coverage import Count
from voting.outcome import hold
from voting.poll import PUBLISHED_RPC, Poll, Reading, drawn
from voting.replay import counts, replay
from voting.replay_stopping import try_stops
from voting.rule import read_values
from voting.samples_file import Problem
from voting.stopping.watch import read_stop

EXACT = Reading(Equivalence())


def problem(name: str, gold: str, *pairs: tuple[str | None, float]) -> Problem:
    return Problem(name, tuple(sample(i, answer, q) for i, (answer, q) in enumerate(pairs)), gold)


def poll(rule: str, reading: Reading = EXACT, **params: Any) -> Poll:
    return Poll(VOTING_RULES.get(rule), params, reading)


KNOWN = [
    problem("a", "1", ("1", 0.9), ("2", 0.5), ("1.0", 0.4), ("1", 0.3)),  # three of four, half of them spelled so
    problem("b", "7", ("8", 0.3), ("8", 0.2), ("7", 0.9), (None, 0.9)),  # the majority is wrong, the weight is not
    problem("c", "3", ("4", 0.5), ("4", 0.4), ("4", 0.3), ("4", 0.2)),
]


def test_all_samples_by_hand() -> None:
    found = replay(KNOWN, [poll("sc"), poll("pc"), poll("ppl")], [4], repeats=3, seed=5)
    sc, pc, ppl = (found[rule][4] for rule in ("sc", "pc", "ppl"))
    assert sc.credit.tolist() == [[1, 0, 0]] * 3
    assert sc.confidence[0] == pytest.approx([3 / 4, 2 / 3, 1])
    assert sc.abstained.tolist() == [[0, 1 / 4, 0]] * 3
    assert sc.covered.tolist() == [[1, 1, 0]] * 3
    assert pc.credit.tolist() == [[1, 1, 0]] * 3
    assert pc.confidence[0] == pytest.approx([1.6 / 2.1, 0.9 / 1.4, 1])
    assert ppl.credit.tolist() == [[1, 1, 0]] * 3
    assert ppl.confidence[0] == pytest.approx([0.9, 0.9, 0.5])


def test_the_summary_by_hand() -> None:
    found = replay(KNOWN, [poll("sc")], [4], repeats=2, seed=0)["sc"][4].summary(seed=0)
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["ece"] == pytest.approx((1 / 4 + 2 / 3 + 1) / 3)
    assert found["brier"] == pytest.approx((1 / 16 + 4 / 9 + 1) / 3)
    assert found["auroc"] == pytest.approx(1 / 2)
    assert found["coverage"] == pytest.approx(2 / 3)
    assert found["precision"] == pytest.approx(1 / 2)
    assert found["abstain_rate"] == pytest.approx(1 / 12)
    assert (found["mean_samples"], found["without_confidence"]) == (4, 0)


def test_fewer_samples_are_the_first_of_more() -> None:
    rng = random.Random(8)
    made = problem("a", "1", *((rng.choice(["1", "2", "3"]), rng.random()) for _ in range(9)))
    found = replay([made], [poll("pc")], [2, 5, 9], repeats=6, seed=4)["pc"]
    for k, grades in found.items():
        votes = [poll("pc").hold(drawn(made.samples, k, 4 + r)) for r in range(6)]
        assert grades.confidence[:, 0].tolist() == [vote.confidence for vote in votes]
        assert grades.credit[:, 0].tolist() == [vote.answer == "1" for vote in votes]


@pytest.mark.parametrize("rule", ["sc", "pc", "rpc", "ppl", "verbalised"])
def test_all_samples_have_no_deviation(rule: str) -> None:
    """Whatever the order, the same votes to the last bit."""
    rng = random.Random(3)
    problems = [
        problem(str(n), "1", *((rng.choice(["1", "1", "2", "3", None]), rng.random()) for _ in range(12)))
        for n in range(8)
    ]
    found = replay(problems, [poll(rule)], [5, 12], repeats=4, seed=0)[rule]
    whole = found[12].summary(seed=0)
    assert {name: value for name, value in whole.items() if name.endswith("_std")} == {
        name: 0.0 for name in whole if name.endswith("_std")
    }
    assert found[5].confidence.std(0).max() > 0


def test_shuffles_are_pythons_and_alike_for_all_problems() -> None:
    for seed in (0, 3):
        order = list(range(6))
        random.seed(seed)
        random.shuffle(order)
        for k in (1, 4, 6):
            taken = drawn([sample(10 + i, str(i)) for i in range(6)], k, seed)
            assert [one.answer for one in taken] == [str(i) for i in order[:k]]
            assert [one.index for one in taken] == list(range(k))
    with pytest.raises(SamplerError) as caught:
        drawn([sample(0, "a")], 2, 0)
    assert caught.value.param == "k"


def test_larger_votes_extend_smaller_ones() -> None:
    samples = [sample(i, str(i)) for i in range(9)]
    for k in range(1, 9):
        assert drawn(samples, 9, 4)[:k] == drawn(samples, k, 4)


@pytest.mark.parametrize("equiv", ["exact", "string", "published"])
def test_a_replay_is_the_vote_over_the_same_samples(equiv: str) -> None:
    reading = Reading(read_equivalence(equiv))
    asked = poll("rpc", reading, min_paths=2)
    answers = ["50", "0.5", "1/2", "50%", "7", "5000", "0.5"]
    one = problem("a", "1/2", *((answer, 0.3 + i / 20) for i, answer in enumerate(answers)))
    for k in (3, 7):
        grades = replay([one], [asked], [k], repeats=3, seed=1)["rpc"][k]
        for r in range(3):
            samples = drawn(one.samples, k, 1 + r)
            rule = VOTING_RULES.get("rpc")
            clusters = partition(samples, reading.equivalence).clusters
            outcome = hold(samples, clusters, rule, read_values(rule, {"min_paths": 2}, k))
            assert grades.confidence[r, 0] == outcome.confidence


def test_invalid_answers_vote_and_ties_share_credit_as_published() -> None:
    reading = Reading(Equivalence(), published=True)
    invalid = problem("a", "1", ("1", 0.5), (None, 0.4), (None, 0.3), ("2", 0.2))
    tied = problem("b", "1", ("2", 0.9), ("1", 0.2), ("3", 0.3))
    ours = replay([invalid], [poll("sc")], [4], 1, 0)["sc"][4]
    theirs = replay([invalid], [poll("sc", reading)], [4], 1, 0)["sc"][4]
    assert (ours.credit.item(), ours.confidence.item(), ours.abstained.item()) == (1, 0.5, 0.5)
    assert (theirs.credit.item(), theirs.confidence.item(), theirs.abstained.item()) == (0, 0.5, 0)
    assert replay([tied], [poll("sc")], [3], 1, 0)["sc"][3].credit.item() == 0
    assert replay([tied], [poll("sc", reading)], [3], 1, 0)["sc"][3].credit.item() == pytest.approx(1 / 3)


def test_rpc_as_published_fits_all_samples() -> None:
    """The reference fit of the specification. Ours leaves out those that abstain, and has too few."""
    q = (0.91, 0.92, 0.90, 0.93, 0.92, 0.70, 0.72, 0.68, 0.71, 0.69)
    one = problem("a", "1", *((None if i in (1, 6, 7) else "1", x) for i, x in enumerate(q)))
    ours = poll("rpc").hold(poll("rpc").read(one)).tally
    assert ours.pruning is not None and (ours.pruning["status"], ours.pruned) == ("too_few", {})
    theirs = poll("rpc", Reading(Equivalence(), published=True), **PUBLISHED_RPC)
    assert sorted(theirs.hold(theirs.read(one)).tally.pruned) == [5, 6, 7, 8, 9]


def test_a_vote_of_abstentions_is_wrong_and_has_no_confidence() -> None:
    found = replay([problem("a", "1", (None, 0.5), (None, 0.5))], [poll("sc")], [2], 1, 0)["sc"][2].summary(0)
    assert (found["accuracy"], found["ece"], found["without_confidence"], found["precision"]) == (0, None, 1, None)


def test_answers_can_be_found_anew() -> None:
    text = r"so \boxed{4} it is" + "\nConfidence: 80"
    samples = (Sample(0, text, None, abstain_reason="no_answer"), Sample(1, "nothing", "4"))
    found = replace(EXACT, extraction=read_extraction("boxed"))
    one, other = poll("sc", found).read(Problem("a", samples, "4"))
    assert (one.answer, one.abstains, other.answer, other.abstain_reason) == ("4", False, None, "no_answer")
    last = replace(EXACT, extraction=read_extraction("last_number"))
    assert [poll(rule, last).read(Problem("a", samples))[0].answer for rule in ("sc", "verbalised")] == ["80", "4"]


@pytest.mark.parametrize("gold", ["B", "b", "(B)"])
def test_options_are_right_however_they_are_spelled(gold: str) -> None:
    samples = (Sample(0, "The answer is (B)."), Sample(1, "The answer is A."))
    one = Problem("a", samples, gold, prompt="Choose. A) x B) y")
    found = replace(EXACT, extraction=read_extraction("auto"))
    assert counts([one], poll("sc", found)) == [Count(2, 1)]


def test_truncated_samples_vote_if_they_may() -> None:
    one = Problem("a", (Sample(0, "t", "1", finish_reason="length"), Sample(1, "u", "2")), "1")
    assert counts([one], poll("sc")) == [Count(2, 0)]
    assert counts([one], poll("sc", replace(EXACT, keep_truncated=True))) == [Count(2, 1)]


def test_errors_name_the_problem() -> None:
    without = Problem("lost", (Sample(0, "t", "1"),), "1")
    for rule, k, param in (("pc", 1, "mean_logprob"), ("sc", 2, "k")):
        with pytest.raises(SamplerError, match="problem 'lost'") as caught:
            replay([without], [poll(rule)], [k], 1, 0)
        assert caught.value.param == param
    with pytest.raises(SamplerError, match="problem 'lost' has no 'gold'"):
        replay([replace(without, gold=None)], [poll("sc")], [1], 1, 0)


def test_coverage_of_votes_is_pass_at_k_on_average() -> None:
    """Over all subsets, of which shuffles are samples."""
    one = problem("a", "1", *((answer, 0.5) for answer in ("1", "2", "1", "3", "4")))
    n, c = counts([one], poll("sc"))[0]
    assert (n, c) == (5, 2)
    hits = [any(one.samples[i].answer == "1" for i in subset) for subset in combinations(range(5), 2)]
    found = replay([one], [poll("sc")], [2], repeats=4000, seed=0)["sc"][2].covered.mean()
    assert found == pytest.approx(sum(hits) / len(hits), abs=0.04)  # five deviations


def test_stopping_rules_on_known_samples() -> None:
    same = problem("a", "1", *[("1", 0.5)] * 12)
    stops = [read_stop(one) for one in ("none", "beta", "esc", "mode_cert", {"rule": "esc", "window": 3})]
    found = [one.summary() for one in try_stops([same], poll("sc"), stops, 12, repeats=2, seed=0)]
    assert [one["mean_samples"] for one in found] == [12, 4, 5, 10, 3]
    assert [one["fired"] for one in found] == [0, 1, 1, 1, 1]
    assert found[1]["saved"] == pytest.approx(8 / 12)
    for one in found:
        assert (one["accuracy"], one["full_accuracy"], one["lost"], one["same_answer"]) == (1, 1, 0, 1)


def test_what_a_stopping_rule_loses() -> None:
    """In order, the first two agree and are wrong."""
    order = list(range(6))
    random.Random(0).shuffle(order)
    answers = [""] * 6
    for place, answer in zip(order, ["2", "2", "1", "1", "1", "1"], strict=True):
        answers[place] = answer
    one = problem("a", "1", *((answer, 0.5) for answer in answers))
    stop = read_stop({"rule": "esc", "window": 2})
    found = try_stops([one], poll("sc"), [stop], 6, repeats=1, seed=0)[0].summary()
    assert (found["mean_samples"], found["accuracy"], found["lost"], found["same_answer"]) == (2, 0, 1, 0)


def test_the_answer_of_the_window_alone() -> None:
    order = list(range(7))
    random.Random(0).shuffle(order)
    answers = [""] * 7
    for place, answer in zip(order, ["2", "1", "2", "3", "1", "1", "2"], strict=True):
        answers[place] = answer
    one = problem("a", "1", *((answer, 0.5) for answer in answers))
    stops = [read_stop({"rule": "esc", "window": 2, "answer_from": who}) for who in ("all", "window")]
    everything, window = (one.summary() for one in try_stops([one], poll("sc"), stops, 7, repeats=1, seed=0))
    assert everything["mean_samples"] == window["mean_samples"] == 6
    assert window["accuracy"] == 1 and window["same_answer"] == 0


def test_weighted_certificates_need_log_probabilities() -> None:
    stop = read_stop({"rule": "mode_cert", "weighted": True})
    samples = tuple(Sample(i, "t", "1") for i in range(3))
    with pytest.raises(SamplerError, match="needs 'mean_logprob'"):
        try_stops([Problem("a", samples, "1")], poll("sc"), [stop], 3, 1, 0)
    heavy = problem("b", "1", *[("1", 1.0)] * 12)
    light = problem("c", "1", *[("1", 0.1)] * 12)
    found = try_stops([heavy, light], poll("sc"), [stop], 12, 1, 0)[0]
    assert found.used.tolist() == [[10, 12]]
