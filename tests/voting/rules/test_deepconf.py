"""DeepConf: scores of traces against plain loops, filters, and the trace that is watched while it is drawn."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.voting.votes import clusters_of, sample, vote, weights
from voting.contract import VOTING_RULES, Sample
from voting.rule import read_values
from voting.rules.deepconf import DeepConf
from voting.trace_confidence import SCORES, percentile, trace_score, window_means
from voting.trace_monitor import TraceMonitor


def trace(seed: int, length: int) -> tuple[float, ...]:
    return tuple(np.random.default_rng(seed).uniform(3, 12, length))


def slow_windows(values: tuple[float, ...], window: int) -> list[float]:
    width = min(window, len(values))
    return [sum(values[i : i + width]) / width for i in range(len(values) - width + 1)]


def votes(*traces: tuple[str | None, tuple[float, ...]]) -> list[Sample]:
    return [sample(i, answer, confidences=values) for i, (answer, values) in enumerate(traces)]


def values_of(samples: int = 64, **params: Any) -> dict[str, Any]:
    return read_values(VOTING_RULES.get("deepconf"), params, samples)


# --- scores


@pytest.mark.parametrize("window", [1, 2, 7, 40])
@pytest.mark.parametrize("length", [1, 2, 8, 39, 100])
def test_scores_are_those_of_plain_loops(window: int, length: int) -> None:
    values = trace(length, length)
    means = slow_windows(values, window)
    lowest_tenth = sorted(means)[: max(1, int(0.1 * len(means)))]
    expected = {
        "mean": sum(values) / length,
        "tail": sum(values[-window:]) / len(values[-window:]),
        "lowest": min(means),
        "bottom10": sum(lowest_tenth) / len(lowest_tenth),
    }
    assert window_means(values, window) == pytest.approx(means, rel=1e-12)
    assert {kind: trace_score(values, window, kind) for kind in SCORES} == pytest.approx(expected, rel=1e-12)
    found = {kind: trace_score(values, window, kind) for kind in SCORES}
    assert found["lowest"] <= found["bottom10"] + 1e-12 <= sum(means) / len(means) + 2e-12
    if length <= window:
        assert all(score == pytest.approx(found["mean"], rel=1e-12) for score in found.values())


def test_a_trace_without_tokens_has_no_windows() -> None:
    with pytest.raises(ValueError, match="without tokens"):
        window_means((), 4)
    outcome = vote("deepconf", votes(("a", ()), ("b", (3.0,))))
    assert (outcome.answer, outcome.samples[0].abstain_reason) == ("b", "no_tokens")


# --- offline


def test_answers_weigh_the_scores_of_their_traces() -> None:
    samples = votes(("a", (4.0, 4.0)), ("b", (9.0, 9.0)), ("a", (4.0, 4.0)))
    outcome = vote("deepconf", samples)
    assert (outcome.answer, weights(outcome), outcome.baseline) == ("b", {"a": 8.0, "b": 9.0}, ("a", 2 / 3))
    assert outcome.confidence == pytest.approx(9 / 17)


@pytest.mark.parametrize("eta", [0, 10, 33, 90, 100])
def test_the_filter_keeps_the_highest_scores(eta: float) -> None:
    samples = votes(*(("ab"[i % 2], trace(i, 30)) for i in range(21)))
    outcome = vote("deepconf", samples, eta=eta, window=5)
    scores = [trace_score(one.confidences or (), 5, "bottom10") for one in samples]
    least = np.percentile(scores, 100 - eta)
    assert set(outcome.tally.pruned) == {i for i, score in enumerate(scores) if score < least}
    kept = {0: 1, 10: 3, 33: 7, 90: 19, 100: 21}[int(eta)]
    assert len(samples) - len(outcome.tally.pruned) == kept
    assert outcome.baseline == ("a", 11 / 21)


def test_percentiles_are_interpolated() -> None:
    assert [percentile([4.0, 1.0, 2.0], p) for p in (0, 25, 50, 75, 100)] == [1.0, 1.5, 2.0, 3.0, 4.0]


# --- while drawing


@pytest.mark.parametrize("window", [1, 3, 16])
@pytest.mark.parametrize("seed", range(6))
def test_a_monitor_stops_at_the_first_low_full_window(window: int, seed: int) -> None:
    values = trace(seed, 60)
    means = slow_windows(values, window)
    for limit in (-math.inf, 5.0, 6.5, 7.5, math.inf):
        monitor = TraceMonitor(window, limit)
        fed = next((i + 1 for i, value in enumerate(values) if monitor.feed(value)), None)
        low = next((i for i, mean in enumerate(means) if mean < limit), None)
        assert fed == (None if low is None else low + window)
        assert monitor.aborted == (low is not None)
        seen = means if low is None else means[: low + 1]
        assert monitor.lowest == pytest.approx(min(seen), rel=1e-12)
        if monitor.aborted:
            with pytest.raises(ValueError, match="aborted"):
                monitor.feed(9.0)


def test_a_monitor_says_nothing_before_a_window_is_full() -> None:
    monitor = TraceMonitor(4, 10.0)
    assert [monitor.feed(1.0) for _ in range(3)] == [False] * 3
    assert monitor.lowest == 1.0
    assert monitor.feed(1.0)
    with pytest.raises(ValueError, match="without tokens"):
        _ = TraceMonitor(4).lowest


def test_at_the_threshold_a_trace_goes_on() -> None:
    monitor = TraceMonitor(2, 4.0)
    assert [monitor.feed(value) for value in (3.0, 5.0, 3.0, 4.5)] == [False, False, False, True]


def test_the_running_sum_does_not_drift() -> None:
    """A huge number that leaves the window leaves rounding behind, here 6.4 too much, until the sum is renewed."""
    monitor = TraceMonitor(4096)
    for value in (1e17, *[0.1] * 8190):
        monitor.feed(value)
    assert monitor.lowest == pytest.approx(416 / 4096, rel=1e-3)
    monitor.feed(0.1)
    assert monitor.lowest == pytest.approx(0.1, rel=1e-14)


@pytest.mark.parametrize("percent", [0, 50, 90, 100])
def test_the_warm_up_sets_the_threshold(percent: float) -> None:
    samples = votes(*(("ab"[i % 2] if i % 5 else None, trace(i, 30)) for i in range(20)))
    values = values_of(mode="online", warmup=12, window=5, confidence_percentile=percent)
    lowest = [min(slow_windows(one.confidences or (), 5)) for one in samples[:12]]
    expected = np.percentile(lowest, 100 - percent)
    assert DeepConf().threshold(samples, values) == pytest.approx(expected, rel=1e-12)
    assert DeepConf().threshold(samples[:11], values) is None


def test_who_votes_online() -> None:
    """The low one of the warm-up does not, nor does an aborted trace; a later low one that was not aborted does."""
    high, low, partial = (9.0, 9.0, 9.0), (9.0, 3.0, 3.0), (8.0, 5.0, 5.0)
    samples = votes(("a", high), ("b", low), ("a", high), ("b", partial), ("b", low))
    samples[4] = replace(samples[4], abstain_reason="low_confidence", finish_reason="abort")
    outcome = vote("deepconf", samples, mode="online", warmup=3, window=2, confidence_percentile=50)
    assert outcome.report()["details"]["threshold"] == 9.0
    assert outcome.tally.pruned == {1: "low_confidence"}
    assert weights(outcome) == {"a": 18.0, "b": 5.0}
    assert outcome.samples[4].abstains and outcome.abstain_rate == 0.2
    assert outcome.baseline == ("a", 0.5)  # of the four that have an answer


def test_a_warm_up_that_is_not_complete_prunes_nothing() -> None:
    rule, samples = VOTING_RULES.get("deepconf"), votes(("a", (9.0,)), ("b", (1.0,)))
    tally = rule.tally(samples, clusters_of(samples), values_of(mode="online", warmup=3))
    assert (tally.pruned, tally.weights) == ({}, (9.0, 1.0))


def test_consensus() -> None:
    rule, samples = VOTING_RULES.get("deepconf"), votes(("a", (9.5,)), ("b", (0.5,)))
    tally = rule.tally(samples, clusters_of(samples), values_of())
    assert DeepConf().has_consensus(tally, values_of())
    assert not DeepConf().has_consensus(tally, values_of(consensus_tau=0.96))
    assert not DeepConf().has_consensus(tally, values_of(consensus_tau=None))
    assert not DeepConf().has_consensus(replace(tally, weights=(0.0, 0.0)), values_of())
