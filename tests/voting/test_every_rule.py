"""What is true of every voting rule (specification, section 20), on random votes."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.contract import SamplerError
from tests.voting.votes import REQUIRED, clusters_of, reordered, sample, shares, vote, weights
from voting.contract import VOTING_RULES, Sample
from voting.outcome import hold
from voting.rule import read_values

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("sc", {}),
    ("pc", {}),
    ("pc", {"score": "joint"}),
    ("rpc", {}),
    ("rpc", {"min_paths": 1, "monotone": True}),
    ("rpc", {"convergence": "published", "fit_set": "all"}),
    ("ppl", {}),
    ("ppl", {"normalise": "sum"}),
    ("ppl", {"normalise": "byte"}),
    ("ppl", {"scorer": {"model": "judge"}}),
    ("bon", {}),
    ("bon", {"aggregate": "cluster_sum"}),
    ("bon", {"aggregate": "softmax", "beta": 3}),
    ("verbalised", {}),
    ("verbalised", {"aggregate": "mean"}),
    ("usc", {}),
    ("deepconf", {}),
    ("deepconf", {"eta": 30, "window": 2, "score": "tail"}),
    ("deepconf", {"mode": "online", "warmup": 1, "window": 2}),
    ("iew", {}),
    ("iew", {"max_ratio": 1.5}),
    ("complexity", {}),
    ("complexity", {"keep": 0.3}),
]
ANY = pytest.mark.parametrize(("rule", "params"), VARIANTS, ids=lambda value: str(value))
EXACTLY = settings(max_examples=12, deadline=None, derandomize=True)


@st.composite
def ballots(draw: st.DrawFn, answers: str = "abc ") -> list[Sample]:
    """Up to 14 different completions; a blank is no answer. Their numbers are all different, so that nothing is tied
    but what has to be."""
    given_answers = draw(st.lists(st.sampled_from(answers), min_size=1, max_size=14))
    noise = random.Random(draw(st.integers(0, 1 << 32)))
    steps = noise.sample(range(1, 50), len(given_answers))
    return [_random_sample(index, answer, noise, steps[index]) for index, answer in enumerate(given_answers)]


def _random_sample(index: int, answer: str, noise: random.Random, steps: int) -> Sample:
    tokens = noise.randint(1, 6)
    return sample(
        index,
        None if answer == " " else answer,
        noise.uniform(0.01, 0.99),
        text="".join(f"step {i} {noise.random()}\n" for i in range(steps)) + f"Confidence: {noise.uniform(1, 100):.6f}",
        token_ids=tuple(noise.randint(0, 1 << 30) for _ in range(tokens)),
        n_tokens=tokens,
        entropies=tuple(noise.uniform(0, 3) for _ in range(tokens)),
        confidences=tuple(noise.uniform(3, 9) for _ in range(tokens)),
        scores={"judge": noise.random()},
    )


@ANY
def test_a_single_sample_wins(rule: str, params: dict[str, Any]) -> None:
    outcome = vote(rule, [sample(0, "a", 0.25)], **params)
    assert (outcome.answer, outcome.representative, outcome.tie) == ("a", 0, False)
    assert outcome.fallback is None
    assert outcome.baseline == ("a", 1.0)
    assert outcome.shares in ((1.0,), (None,))


@ANY
@EXACTLY
@given(samples=ballots(answers="a "))
def test_unanimous_samples(rule: str, params: dict[str, Any], samples: list[Sample]) -> None:
    outcome = vote(rule, samples, **params)
    if all(one.abstains for one in samples):
        assert (outcome.answer, outcome.fallback) == (None, "all_abstain")
        return
    assert outcome.answer == "a"
    # online, every trace of the warm-up may be below the threshold that those without an answer have set
    assert outcome.shares in ((1.0,), (None,)) or params.get("mode") == "online"


@ANY
@EXACTLY
@given(samples=ballots(), data=st.data())
def test_the_order_of_the_samples_is_irrelevant(
    rule: str, params: dict[str, Any], samples: list[Sample], data: st.DataObject
) -> None:
    if params.get("mode") == "online":
        return  # the warm-up comes first
    order = data.draw(st.permutations(range(len(samples))))
    one, other = vote(rule, samples, **params), vote(rule, reordered(samples, order), **params)
    assert weights(one) == weights(other)  # to the last bit
    assert shares(one) == shares(other)
    assert (one.answer, one.confidence, one.tie, one.fallback) == (
        other.answer,
        other.confidence,
        other.tie,
        other.fallback,
    )
    assert one.baseline == other.baseline
    assert one.representative == order[other.representative]
    assert {index: reason for index, reason in one.tally.pruned.items()} == {
        order[index]: reason for index, reason in other.tally.pruned.items()
    }


@ANY
@EXACTLY
@given(samples=ballots())
def test_a_vote_is_decided_well(rule: str, params: dict[str, Any], samples: list[Sample]) -> None:
    outcome = vote(rule, samples, **params)
    able = [one for one in outcome.samples if not one.abstains]
    members = [index for one in outcome.clusters for index in one.members]
    assert sorted(members) == [one.index for one in able]  # abstaining samples are in no cluster, all others in one
    if able:
        assert outcome.winner is not None and outcome.representative in outcome.clusters[outcome.winner].members
        assert outcome.representative not in outcome.tally.pruned or outcome.fallback == "no_weight"
    known = [share for share in outcome.shares if share is not None]
    if known:
        assert len(known) == len(outcome.clusters) and math.fsum(known) == pytest.approx(1, abs=1e-12)
        assert min(outcome.tally.weights) >= 0
    assert outcome.confidence is None or 0 <= outcome.confidence <= 1
    assert set(outcome.tally.pruned) <= set(members)
    assert all(outcome.tally.sample_weights.get(index, 0.0) == 0 for index in outcome.tally.pruned)


@ANY
@EXACTLY
@given(samples=ballots(), q=st.floats(0.01, 0.99))
def test_one_more_that_abstains_changes_nothing(
    rule: str, params: dict[str, Any], samples: list[Sample], q: float
) -> None:
    if params.get("mode") == "online" or params.get("fit_set") == "all":
        return  # it is a trace of the warm-up, or of the fit
    more = [*samples, sample(len(samples), None, q, token_ids=(-1,))]
    one, other = vote(rule, samples, **params), vote(rule, more, **params)
    assert one.tally == other.tally
    if one.winner is not None:
        assert (one.representative, one.confidence) == (other.representative, other.confidence)


@ANY
@EXACTLY
@given(samples=ballots())
def test_votes_repeat_and_are_finite_json(rule: str, params: dict[str, Any], samples: list[Sample]) -> None:
    one, other = vote(rule, samples, **params), vote(rule, samples, **params)
    assert json.dumps([one.report(), one.records()], allow_nan=False) == json.dumps([other.report(), other.records()])


@ANY
@EXACTLY
@given(samples=ballots())
def test_the_plain_majority_is_beside_every_answer(rule: str, params: dict[str, Any], samples: list[Sample]) -> None:
    plain = vote("sc", samples)
    assert vote(rule, samples, **params).baseline == (
        None if plain.winner is None else (plain.answer, plain.confidence)
    )


@ANY
def test_unknown_and_ill_typed_parameters(rule: str, params: dict[str, Any]) -> None:
    item = VOTING_RULES.get(rule)
    for name in [param.name for param in item.params if param.kind is not bool]:
        for bad in (float("nan"), [], {}, "no such choice", True):
            with pytest.raises(SamplerError) as caught:
                read_values(item, {**REQUIRED.get(rule, {}), name: bad}, 16)
            assert caught.value.param == f"voting.params.{name}"
    with pytest.raises(SamplerError, match=r"voting\.params\.nothing") as caught:
        read_values(item, {**params, "nothing": 1}, 16)
    assert caught.value.param == "voting.params.nothing"


@ANY
@EXACTLY
@given(samples=ballots())
def test_values_and_samples_are_left_alone(rule: str, params: dict[str, Any], samples: list[Sample]) -> None:
    item = VOTING_RULES.get(rule)
    values = read_values(item, REQUIRED.get(rule, {}) | params, len(samples))
    before = json.dumps(values), [replace(one) for one in samples]
    hold(samples, clusters_of(samples), item, values)
    assert (json.dumps(values), samples) == before


MISSING = {"logprobs": "mean_logprob", "entropies": "entropies", "confidences": "confidences"}


@ANY
def test_what_was_never_recorded_is_an_error_that_names_it(rule: str, params: dict[str, Any]) -> None:
    item = VOTING_RULES.get(rule)
    values = read_values(item, REQUIRED.get(rule, {}) | params, 2)
    assert item.needs(values) <= {"logprobs", "lengths", "entropies", "confidences", "scores"}
    for need, field in (MISSING | {"lengths": "n_tokens", "scores": "scores"}).items():
        empty: Any = {"lengths": 0, "scores": {}}.get(need)
        samples = [replace(sample(index, "a"), **{field: empty}) for index in range(2)]
        if need in item.needs(values):
            with pytest.raises(SamplerError):
                hold(samples, clusters_of(samples), item, values)
        else:
            hold(samples, clusters_of(samples), item, values)


def test_null_stands_for_a_scalar_default() -> None:
    rule = VOTING_RULES.get("rpc")
    assert read_values(rule, {"min_paths": None}, 16)["min_paths"] == 8
    assert read_values(VOTING_RULES.get("deepconf"), {"consensus_tau": None}, 16)["consensus_tau"] is None
    assert read_values(VOTING_RULES.get("deepconf"), {}, 16)["consensus_tau"] == 0.95
    with pytest.raises(SamplerError, match=r"'voting\.params\.scorer' is required"):
        read_values(VOTING_RULES.get("bon"), {}, 16)


@pytest.mark.parametrize(
    ("rule", "params"),
    [
        ("rpc", {"min_paths": 0}),
        ("rpc", {"min_paths": 513}),
        ("deepconf", {"topk": 1}),
        ("deepconf", {"topk": 101}),
        ("deepconf", {"window": 0}),
        ("deepconf", {"warmup": 0}),
        ("deepconf", {"warmup": 17, "mode": "online"}),
        ("deepconf", {"confidence_percentile": 100.5}),
        ("deepconf", {"confidence_percentile": -1}),
        ("deepconf", {"consensus_tau": 0}),
        ("deepconf", {"consensus_tau": 1.1}),
        ("complexity", {"keep": 0}),
        ("complexity", {"keep": 1.01}),
        ("ppl", {"scorer": "name"}),
        ("ppl", {"scorer": {}}),
        ("ppl", {"scorer": {"model": "m", "unit": "word"}}),
        ("ppl", {"scorer": {"model": "m", "nothing": 1}}),
        ("bon", {"scorer": 3}),
        ("bon", {"scorer": ""}),
        ("bon", {"scorer": {"model": "m", "unit": "word"}}),
        ("iew", {"max_ratio": 0.5}),
    ],
    ids=str,
)
def test_values_out_of_range(rule: str, params: dict[str, Any]) -> None:
    with pytest.raises(SamplerError) as caught:
        read_values(VOTING_RULES.get(rule), params, 16)
    assert str(caught.value.param).startswith(f"voting.params.{next(iter(params))}")
