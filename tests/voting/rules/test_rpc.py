"""Reasoning pruning: what it removes, what it never removes, and when it leaves everything as it is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.voting.test_weibull import FIRST, SECOND, hump
from tests.voting.votes import sample, samples_of, shares, vote, weights
from voting import weibull
from voting.contract import Sample
from voting.rules import rpc
from voting.weibull import Component, Fit, Mixture


def labelled(values: list[float], pattern: str = "aabc") -> list[Sample]:
    return samples_of(*((pattern[i % len(pattern)], q) for i, q in enumerate(values)))


def two_humps(seed: int) -> list[float]:
    noise = np.random.default_rng(seed)
    return [*noise.normal(0.9, 0.01, 12), *noise.normal(0.6, 0.03, 12)]


VARIETY = [FIRST, SECOND, *(two_humps(seed) for seed in range(4)), *(hump(seed, 30) for seed in range(8))]
PARAMS: list[dict[str, Any]] = [{}, {"monotone": True}, {"convergence": "published"}, {"fit_set": "all"}]


@pytest.mark.parametrize(("values", "pruned"), [(FIRST, {5, 6, 7, 8, 9}), (SECOND, {8, 9, 10, 11})])
@pytest.mark.parametrize("params", PARAMS)
def test_reference_sets(values: list[float], pruned: set[int], params: dict[str, Any]) -> None:
    outcome = vote("rpc", labelled(values), **params)
    assert set(outcome.tally.pruned) == pruned
    report = outcome.report()["pruning"]
    assert (report["status"], report["n_pruned"], report["flags"]) == ("ok", len(pruned), [])
    assert report["mean_q"] == pytest.approx(sum(values) / len(values))
    assert {record["index"] for record in outcome.records() if record["pruned"]} == pruned


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("values", VARIETY)
def test_what_is_never_pruned(values: list[float], params: dict[str, Any]) -> None:
    samples = labelled(values)
    outcome = vote("rpc", samples, **params)
    mean = math.fsum(one.q for one in samples) / len(samples)
    assert all(samples[index].q < mean for index in outcome.tally.pruned)
    assert len(outcome.tally.pruned) < len(samples)
    assert math.fsum(share or 0 for share in outcome.shares) == pytest.approx(1)
    kept = [one for one in samples if one.index not in outcome.tally.pruned]
    for answer, weight in weights(outcome).items():
        assert weight == math.fsum(one.q for one in kept if one.answer == answer)


@pytest.mark.parametrize("values", VARIETY)
def test_duplicates_and_abstainers_change_nothing(values: list[float]) -> None:
    samples = labelled(values)
    plain = vote("rpc", samples)
    count = len(samples)
    doubled = [*samples, *(replace(one, index=count + one.index) for one in samples[::3])]
    more = [*doubled, sample(len(doubled), None, 0.01), sample(len(doubled) + 1, None, 0.99)]
    assert weights(vote("rpc", more)) == weights(plain)
    pruned = set(vote("rpc", more).tally.pruned)
    assert {index for index in pruned if index < count} == set(plain.tally.pruned)
    assert {index - count for index in pruned if index >= count} == set(plain.tally.pruned) & set(range(0, count, 3))


def test_the_fit_of_all_sees_duplicates_and_abstainers() -> None:
    samples = [*labelled(FIRST), *(sample(10 + i, None, 0.5 + 0.01 * i) for i in range(8))]
    mean = math.fsum(one.q for one in samples) / len(samples)
    assert vote("rpc", samples, fit_set="all").report()["pruning"]["mean_q"] == pytest.approx(mean)
    without = [replace(one, mean_logprob=None) if one.answer is None else one for one in samples]
    assert vote("rpc", without, fit_set="all").tally == vote("rpc", samples).tally


def test_the_fit_of_all_cannot_remove_every_vote() -> None:
    samples = [*(sample(i, "a", 0.60 + 0.001 * i) for i in range(6)), *(sample(6 + i, None, 0.9) for i in range(3))]
    samples += [sample(9 + i, None, 0.901 + 0.001 * i) for i in range(6)]
    outcome = vote("rpc", samples, fit_set="all")
    assert outcome.tally.pruned == {} and outcome.confidence == 1.0
    assert "all_low" in outcome.report()["pruning"]["flags"]


@pytest.mark.parametrize("answers", ["a", "ab", "aba"])
def test_few_paths_are_perplexity_consistency(answers: str) -> None:
    samples = samples_of(*((answer, 0.2 + 0.3 * i) for i, answer in enumerate(answers)))
    outcome = vote("rpc", samples)
    assert weights(outcome) == weights(vote("pc", samples))
    assert outcome.report()["pruning"]["status"] == "too_few"
    json_report = outcome.report()["pruning"]
    assert (json_report["params"], json_report["nll"], json_report["n_pruned"]) == (None, None, 0)


def test_few_distinct_paths_of_many_samples() -> None:
    samples = [sample(i, "ab"[i % 2], 0.3 + 0.4 * (i % 2), token_ids=(i % 2,)) for i in range(40)]
    assert vote("rpc", samples).report()["pruning"]["status"] == "too_few"


@pytest.mark.parametrize("q", [0.5, 1.0])
@pytest.mark.parametrize("convergence", ["strict", "published"])
def test_equal_q_prunes_nothing(q: float, convergence: str) -> None:
    samples = samples_of(*((answer, q) for answer in "aabbbccaab"))
    outcome = vote("rpc", samples, convergence=convergence)
    assert (outcome.tally.pruned, outcome.report()["pruning"]["status"]) == ({}, "degenerate")
    assert weights(outcome) == weights(vote("pc", samples))
    assert shares(outcome) == pytest.approx(shares(vote("sc", samples)))


@pytest.mark.parametrize("status", ["not_converged", "nonfinite", "degenerate"])
def test_a_failed_fit_prunes_only_if_it_is_to(monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    good = weibull.fit(FIRST, 8)
    monkeypatch.setattr(rpc, "fit", lambda *_: Fit(status, good.mixture, math.nan))
    strict = vote("rpc", labelled(FIRST))
    assert (strict.tally.pruned, strict.report()["pruning"]["status"]) == ({}, status)
    assert strict.report()["pruning"]["nll"] is None
    assert set(vote("rpc", labelled(FIRST), convergence="published").tally.pruned) == {5, 6, 7, 8, 9}


def test_published_fits_need_no_number_of_paths() -> None:
    few = FIRST[3:]
    assert vote("rpc", labelled(few)).tally.pruned == {}
    assert set(vote("rpc", labelled(few), convergence="published").tally.pruned) == {2, 3, 4, 5, 6}
    assert set(vote("rpc", labelled(few), min_paths=7).tally.pruned) == {2, 3, 4, 5, 6}


def test_pruning_can_be_off() -> None:
    for params in ({"prune": False}, {"score": "joint"}):
        outcome = vote("rpc", labelled(FIRST), **params)
        same = {"score": params["score"]} if "score" in params else {}
        assert outcome.tally == vote("pc", labelled(FIRST), **same).tally
        assert outcome.report()["pruning"] is None


def test_a_cluster_of_pruned_paths_has_no_share_and_stays() -> None:
    outcome = vote("rpc", samples_of(*(("a" if q > 0.8 else "b", q) for q in FIRST)))
    assert shares(outcome) == {"a": 1.0, "b": 0.0}
    assert outcome.clusters[1].members == (5, 6, 7, 8, 9)
    assert outcome.baseline == ("a", 0.5)


def test_separation_can_be_required() -> None:
    assert len(vote("rpc", labelled(FIRST), require_separation=True).tally.pruned) == 5
    seeds = [seed for seed in range(40) if vote("rpc", labelled(hump(seed))).tally.pruned]
    assert seeds  # one group of paths is pruned nevertheless
    kept = [seed for seed in seeds if not vote("rpc", labelled(hump(seed)), require_separation=True).tally.pruned]
    assert len(kept) >= 0.8 * len(seeds)
    flags = vote("rpc", labelled(hump(kept[0])), require_separation=True).report()["pruning"]["flags"]
    assert "not_separated" in flags


def test_the_lowest_can_be_reclaimed_unless_pruning_is_monotone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A high component with a shape below 1 is the likelier one close to 0."""
    reclaiming = Mixture.of(Component(0.5, 0.4, 0.8), Component(0.5, 12.0, 0.4))
    assert reclaiming.high.shape == 0.4
    monkeypatch.setattr(rpc, "fit", lambda *_: Fit("ok", reclaiming, -1.0))
    samples = labelled([0.01, 0.35, 0.4, 0.42, 0.9, 0.95, 0.97, 0.99])
    plain, monotone = vote("rpc", samples), vote("rpc", samples, monotone=True)
    assert set(plain.tally.pruned) == {1, 2, 3}
    assert set(monotone.tally.pruned) == {0, 1, 2, 3}
    for outcome in (plain, monotone):
        assert outcome.report()["pruning"]["flags"] == ["non_monotone"]


def test_weights_that_underflow_prune_nothing() -> None:
    samples = [replace(one, mean_logprob=-800.0 if one.index < 5 else -1.0 - one.index) for one in labelled(FIRST)]
    for convergence in ("strict", "published"):
        outcome = vote("rpc", samples, convergence=convergence, monotone=True)
        assert (outcome.tally.pruned, outcome.report()["pruning"]["status"]) == ({}, "nonfinite")
        assert outcome.report()["pruning"]["flags"] == []


def test_the_report_of_the_fit() -> None:
    params = vote("rpc", labelled(FIRST)).report()["pruning"]["params"]
    expected = {"w": 0.5, "k_hi": 105.3, "s_hi": 0.921, "k_lo": 55.5, "s_lo": 0.707}
    assert params == {name: pytest.approx(value, rel=1e-2) for name, value in expected.items()}
