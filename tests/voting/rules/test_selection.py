"""Rules that pick one sample, and scorers: perplexity, best of n."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from samplers.contract import SamplerError
from tests.voting.votes import sample, samples_of, shares, vote, weights
from voting.contract import VOTING_RULES, Sample
from voting.rule import read_values
from voting.rules.bon import expected_best
from voting.rules.ppl import bits_per_byte
from voting.scorers import LIKELIHOOD, SCORERS, with_likelihoods, with_scores

# --- perplexity


def test_the_most_probable_per_token_whatever_the_others_say() -> None:
    outcome = vote("ppl", samples_of(("a", 0.4), ("a", 0.4), ("b", 0.7), ("a", 0.4)))
    assert (outcome.answer, outcome.representative, outcome.confidence) == ("b", 2, pytest.approx(0.7))
    assert outcome.baseline == ("a", 0.75)
    assert outcome.shares == (None, None)
    assert weights(outcome) == {"a": pytest.approx(math.log(0.4)), "b": pytest.approx(math.log(0.7))}


def test_ties_of_perplexity_go_to_the_smaller_index() -> None:
    outcome = vote("ppl", samples_of(("a", 0.4), ("b", 0.7), ("a", 0.7), ("a", 0.7)))
    assert (outcome.answer, outcome.representative, outcome.tie) == ("b", 1, True)


def test_what_log_probability_counts_per() -> None:
    samples = [
        sample(0, "long", n_tokens=10, mean_logprob=-0.1, text="x" * 4),  # sum -1, per byte -0.25
        sample(1, "short", n_tokens=1, mean_logprob=-0.5, text="x"),  # sum -0.5, per byte -0.5
        sample(2, "wide", n_tokens=3, mean_logprob=-0.4, text="ééééé"),  # sum -1.2, per byte -0.12
    ]
    answers = {norm: vote("ppl", samples, normalise=norm) for norm in ("token", "sum", "byte")}
    assert {norm: outcome.answer for norm, outcome in answers.items()} == {
        "token": "long",
        "sum": "short",
        "byte": "wide",
    }
    for outcome in answers.values():
        assert outcome.confidence == samples[outcome.representative].q


def test_an_empty_text_has_no_bits_per_byte() -> None:
    samples = [sample(0, "", 0.9, text=""), sample(1, "a", 0.2)]
    outcome = vote("ppl", samples, normalise="byte")
    assert (outcome.answer, outcome.samples[0].abstain_reason) == ("a", "empty")
    with pytest.raises(ValueError, match="empty"):
        bits_per_byte(-1.0, 0)
    assert bits_per_byte(-8 * math.log(2), 4) == pytest.approx(2)


def test_another_models_score_decides() -> None:
    samples = [sample(i, answer, 0.5, scores={"gauge": -bits}) for i, (answer, bits) in enumerate([("a", 2), ("b", 1)])]
    outcome = vote("ppl", samples, scorer={"model": "gauge"})
    assert (outcome.answer, outcome.confidence) == ("b", None)
    assert vote("ppl", [replace(one, scores={}) for one in samples[:1]], scorer={"model": "gauge"}).answer == "a"
    with pytest.raises(SamplerError, match="no scores of 'other'"):
        vote("ppl", samples, scorer={"model": "other"})


# --- best of n


def scored(*scores: float, answers: str = "abcabcabc") -> list[Sample]:
    return [sample(i, answers[i], 0.5, scores={"judge": score}) for i, score in enumerate(scores)]


def test_the_best_score_wins() -> None:
    outcome = vote("bon", scored(-3, -1, -2, -2))
    assert (outcome.answer, outcome.representative, outcome.confidence) == ("b", 1, None)
    assert weights(outcome) == {"a": -2, "b": -1, "c": -2}


def test_a_constant_scorer_picks_the_first() -> None:
    for constant in (0.0, -2.5, 7.0):
        outcome = vote("bon", scored(*[constant] * 6, answers="abbbbb"))
        assert (outcome.representative, outcome.tie, outcome.baseline) == (0, True, ("b", 5 / 6))


@pytest.mark.parametrize("seed", range(5))
def test_increasing_affine_maps_change_no_choice(seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=8)
    best = vote("bon", scored(*scores)).representative
    assert best == int(np.argmax(scores))
    for slope, shift in ((0.1, 0.0), (3.0, -7.0), (1e6, 1e3)):
        assert vote("bon", scored(*(slope * scores + shift))).representative == best


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_abstains(bad: float) -> None:
    outcome = vote("bon", scored(bad, 1.0, 2.0, answers="aab"))
    assert (outcome.answer, outcome.samples[0].abstain_reason) == ("b", "no_score")
    missing = [replace(one, scores={}) if one.index == 2 else one for one in scored(0.5, 1.0, 2.0)]
    assert (vote("bon", missing).answer, vote("bon", missing).samples[2].abstain_reason) == ("b", "no_score")
    assert vote("bon", scored(bad, bad)).fallback == "all_abstain"


def test_scores_are_summed_over_a_cluster() -> None:
    samples = scored(0.6, 1.0, 0.2, 0.6)
    outcome = vote("bon", samples, aggregate="cluster_sum")
    assert weights(outcome) == {"a": 1.2, "b": 1.0, "c": 0.2}
    assert (outcome.answer, outcome.confidence) == ("a", pytest.approx(0.5))
    with pytest.raises(SamplerError, match="negative"):
        vote("bon", scored(0.6, -0.1), aggregate="cluster_sum")


def test_softmax_of_scores() -> None:
    scores = [1000.0, 1001.0, 999.5, 1000.2]
    outcome = vote("bon", scored(*scores), aggregate="softmax", beta=2)
    terms = [math.exp(2 * (score - 1000)) for score in scores]
    total = sum(terms)
    assert shares(outcome) == {
        "a": pytest.approx((terms[0] + terms[3]) / total),
        "b": pytest.approx(terms[1] / total),
        "c": pytest.approx(terms[2] / total),
    }
    flat = vote("bon", scored(*scores), aggregate="softmax", beta=0)
    assert shares(flat) == {"a": 0.5, "b": 0.25, "c": 0.25}


@pytest.mark.parametrize("scores", [[3], [1, 4], [5, -2, 5, 7], [2, 2, 9, -4, 0, 1]])
def test_the_expected_best_of_k_is_the_mean_over_subsets(scores: list[int]) -> None:
    found = []
    for k in range(1, len(scores) + 1):
        subsets = [max(subset) for subset in itertools.combinations(scores, k)]
        found.append(expected_best(scores, k))
        assert found[-1] == pytest.approx(float(Fraction(sum(subsets), len(subsets))), rel=1e-14)
    assert found[0] == pytest.approx(sum(scores) / len(scores)) and found[-1] == max(scores)
    assert found == sorted(found)


def test_the_expected_best_of_many() -> None:
    assert expected_best(range(1, 2001), 1000) == pytest.approx(1000 * 2001 / 1001)  # of uniform ranks
    for k in (0, 3, -1):
        with pytest.raises(SamplerError, match="'k'"):
            expected_best([1, 2], k)


# --- scorers


class Length:
    """Scores the length, and counts what it is asked."""

    name = "length"

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        self.asked.append(list(responses))
        return [float(len(response)) for response in responses]


def test_samples_are_scored_in_one_call_and_equal_texts_once() -> None:
    scorer = Length()
    texts = ["aa", "b", "aa", "ignored"]
    samples = [sample(i, None if text == "ignored" else "x", text=text) for i, text in enumerate(texts)]
    found = with_scores(scorer, "prompt", samples)
    assert scorer.asked == [["aa", "b"]]
    assert [one.scores.get("length") for one in found] == [2.0, 1.0, 2.0, None]
    assert found[0].scores["judge"] == 0.5  # what was there stays
    assert vote("bon", found, scorer="length").representative == 0


def test_a_single_sample_is_not_scored() -> None:
    scorer = Length()
    samples = [sample(0, "a"), sample(1, None)]
    assert with_scores(scorer, "prompt", samples) == samples and scorer.asked == []
    assert vote("bon", samples, scorer="length").representative == 0


def test_a_scorer_that_miscounts_is_found_out() -> None:
    class Short(Length):
        def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
            return [1.0]

    with pytest.raises(ValueError, match="1 scores for 2 responses"):
        with_scores(Short(), "prompt", [sample(0, "a"), sample(1, "b")])


def test_unknown_scorers_name_the_known() -> None:
    with pytest.raises(SamplerError, match="unknown scorer 'x'; known: "):
        SCORERS.get("x", "voting.params.scorer")


def test_the_likelihood_is_a_score_that_samples_have() -> None:
    samples = with_likelihoods(samples_of(("a", 0.4), ("b", 0.7), (None, 0.9)))
    assert [one.scores.get(LIKELIHOOD) for one in samples] == [math.log(0.4), math.log(0.7), None]
    assert vote("bon", samples, scorer=LIKELIHOOD).representative == vote("ppl", samples).representative == 1
    single = samples_of(("a", 0.4), (None, 0.9))
    assert with_likelihoods(single) == single
    unknown = with_likelihoods([sample(i, "a", mean_logprob=None) for i in range(2)])
    assert all(math.isnan(one.scores[LIKELIHOOD]) for one in unknown)
    with pytest.raises(SamplerError, match="'bon' needs 'mean_logprob' of sample 0"):
        vote("bon", unknown, scorer=LIKELIHOOD)
    broken = with_likelihoods([sample(0, "a", mean_logprob=math.nan), sample(1, "b"), sample(2, "b")])
    assert vote("bon", broken, scorer=LIKELIHOOD).samples[0].abstain_reason == "bad_logprob"


def test_a_model_can_be_the_scorer_of_either_rule() -> None:
    samples = [sample(i, answer, scores={"gauge": -bits}) for i, (answer, bits) in enumerate([("a", 2), ("b", 1)])]
    for rule in ("ppl", "bon"):
        assert vote(rule, samples, scorer={"model": "gauge", "unit": None}).answer == "b"
        values = read_values(VOTING_RULES.get(rule), {"scorer": {"model": "gauge", "condition": "prompt"}}, 2)
        assert values["scorer"] == {"model": "gauge", "condition": "prompt", "unit": "byte"}


@pytest.mark.parametrize("scorer", [LIKELIHOOD, {"model": "gauge"}])
def test_log_probabilities_are_never_summed(scorer: object) -> None:
    with pytest.raises(SamplerError, match="cannot be summed") as caught:
        read_values(VOTING_RULES.get("bon"), {"scorer": scorer, "aggregate": "cluster_sum"}, 2)
    assert caught.value.param == "voting.params.aggregate"
