"""Holds a vote: samples, clusters and a rule in; winner, confidence and the evidence out. A pure function.

Knows nothing about how samples are drawn, answers extracted or clusters made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from voting.contract import Cluster, Sample, Tally, VotingRule
from voting.records import write_sample
from voting.rule import distinct, voters
from voting.rules.sc import count
from voting.selection import tied


class Leader(NamedTuple):
    """The cluster that leads; `tie`: another one has the same weight."""

    place: int
    tie: bool


class Decision(NamedTuple):
    """The first fields of an outcome's verdict."""

    winner: int | None
    representative: int
    tie: bool


class Baseline(NamedTuple):
    """The plain majority among all samples with an answer, those included that the rule has discarded."""

    answer: str
    share: float | None


@dataclass(frozen=True)
class Outcome:
    """What a vote has decided, and from what."""

    samples: tuple[Sample, ...]  # all, in index order; those the rule can make nothing of abstain
    clusters: tuple[Cluster, ...]  # of those that do not abstain
    tally: Tally
    shares: tuple[float | None, ...]  # of the whole weight, per cluster; None: weights do not add up, or there is none
    winner: int | None  # place in `clusters`; None: no answer
    representative: int  # index of the sample to be shown
    tie: bool
    confidence: float | None
    baseline: Baseline | None  # None: no sample has an answer
    fallback: str | None  # 'all_abstain', 'no_weight', or the rule's own
    flags: tuple[str, ...]

    @property
    def answer(self) -> str | None:
        return None if self.winner is None else self.clusters[self.winner].answer

    @property
    def abstain_rate(self) -> float:
        return sum(sample.abstains for sample in self.samples) / len(self.samples)

    def report(self) -> dict[str, Any]:
        """Finite JSON: the part of `drafthouse.voting` that follows from the samples."""
        rows = zip(self.clusters, self.tally.weights, self.shares, strict=True)
        return {
            "used_samples": len(self.samples),
            "k_distinct": len(distinct(self.samples)),
            "dedupe_key": "text" if any(sample.token_ids is None for sample in self.samples) else "token_ids",
            "answer": self.answer,
            "confidence": self.confidence,
            "tie": self.tie,
            "abstain_rate": self.abstain_rate,
            "clusters": [_row(place, *row) for place, row in enumerate(rows)],
            "baseline_sc": None if self.baseline is None else self.baseline._asdict(),
            "pruned": _reasons(self.tally.pruned),
            "abstained": _reasons({one.index: _why_silent(one) for one in self.samples if one.abstains}),
            "pruning": None if self.tally.pruning is None else dict(self.tally.pruning),
            "details": dict(self.tally.notes),
            "weight_source": "raw",
            "fallback": self.fallback,
            "flags": list(self.flags),
        }

    def records(self, aside: Sequence[Sample] = ()) -> list[dict[str, Any]]:
        """Finite JSON: every sample with its cluster and what it was worth. aside: others, which have had no vote."""
        places = {index: place for place, cluster in enumerate(self.clusters) for index in cluster.members}
        samples = sorted((*self.samples, *aside), key=lambda sample: sample.index)
        return [self._record(sample, places.get(sample.index)) for sample in samples]

    def _record(self, sample: Sample, cluster: int | None) -> dict[str, Any]:
        pruned = self.tally.pruned.get(sample.index)
        found = {
            "cluster": cluster,
            "q": None if sample.mean_logprob is None else sample.q,
            "weight": self.tally.sample_weights.get(sample.index, 0.0),
            "pruned": pruned is not None,
        }
        reasons = {
            "abstain_reason": _why_silent(sample) if sample.abstains else None,
            "prune_reason": pruned,
        }
        return write_sample(sample) | found | {name: why for name, why in reasons.items() if why is not None}


def hold(
    samples: Sequence[Sample],
    clusters: Sequence[Cluster],
    rule: VotingRule,
    values: Mapping[str, Any],
    *,
    use_sample_weights: bool = True,
    flags: Sequence[str] = (),  # what the caller knows: 'off_model', 'not_iid', 'constrained', ...
) -> Outcome:
    """The vote over these samples; clusters are those of the samples that do not abstain. values: as `read_values`
    gives them. Raises ValueError without samples, SamplerError for samples that lack what the rule needs."""
    if not samples:
        raise ValueError("there is nothing to vote on")
    ordered = [_checked(sample) for sample in sorted(samples, key=lambda sample: sample.index)]
    if not use_sample_weights:
        ordered = [replace(sample, weight=1.0) for sample in ordered]
    if any(sample.abstain_reason == "bad_logprob" for sample in ordered):
        flags = (*flags, "bad_logprob")
    groups = _of_voters(clusters, ordered)
    baseline = _baseline(ordered, groups)
    silent = rule.abstentions(ordered, values)
    ordered = [_silenced(sample, silent[sample.index]) if sample.index in silent else sample for sample in ordered]
    groups = _of_voters(groups, ordered)
    if groups:
        tally = rule.tally(ordered, groups, values)
        decision = _decide(tally, groups, ordered)
    else:
        tally = Tally((), fallback="all_abstain")
        decision = Decision(None, min(ordered, key=_by_likelihood).index, False)
    shares = _shares(tally)
    confidence, fallback = tally.confidence, tally.fallback
    if decision.winner is not None and tally.shares:
        share = shares[decision.winner]
        confidence = share if confidence is None else confidence
        fallback = fallback or ("no_weight" if share is None else None)
    return Outcome(
        tuple(ordered), tuple(groups), tally, shares, *decision, confidence, baseline, fallback, tuple(flags)
    )


def leader(weights: Sequence[float], clusters: Sequence[Cluster], samples: Sequence[Sample]) -> Leader:
    """The largest weight; of tied ones the largest sum of q over distinct completions, then the first member's index.
    A q that is not known counts as 0."""
    best = max(weights)
    leading = [place for place, weight in enumerate(weights) if tied(weight, best)]
    known = {sample.index: sample for sample in samples if sample.mean_logprob is not None}
    likelihood = {
        place: math.fsum(
            sample.q for sample in distinct([known[index] for index in clusters[place].members if index in known])
        )
        for place in leading
    }
    most = max(likelihood.values())
    first = min(
        (place for place in leading if tied(likelihood[place], most)), key=lambda place: clusters[place].members[0]
    )
    return Leader(first, len(leading) > 1)


def representative(cluster: Cluster, tally: Tally, samples: Sequence[Sample]) -> int:
    """Index of its most probable member that counts, if any does."""
    members = [sample for sample in samples if sample.index in cluster.members]
    counted = [sample for sample in members if sample.index not in tally.pruned]
    return min(counted or members, key=_by_likelihood).index


def _decide(tally: Tally, clusters: Sequence[Cluster], samples: Sequence[Sample]) -> Decision:
    if tally.choice is None:
        first, tie = leader(tally.weights, clusters, samples)
        return Decision(first, representative(clusters[first], tally, samples), tie)
    for place, cluster in enumerate(clusters):
        if tally.choice in cluster.members:
            tie = sum(tied(weight, tally.weights[place]) for weight in tally.weights) > 1
            return Decision(place, tally.choice, tie)
    return Decision(None, tally.choice, False)  # the rule has picked a sample without an answer


def _shares(tally: Tally) -> tuple[float | None, ...]:
    total = math.fsum(tally.weights)
    if not tally.shares or not total > 0:
        return (None,) * len(tally.weights)
    return tuple(weight / total for weight in tally.weights)


def _by_likelihood(sample: Sample) -> tuple[float, int]:
    return (math.inf if sample.mean_logprob is None else -sample.mean_logprob, sample.index)


def _baseline(samples: Sequence[Sample], clusters: Sequence[Cluster]) -> Baseline | None:
    if not clusters:
        return None
    weights = count(voters(samples), clusters).weights
    first, total = leader(weights, clusters, samples).place, math.fsum(weights)
    return Baseline(clusters[first].answer, weights[first] / total if total > 0 else None)


def _of_voters(clusters: Sequence[Cluster], samples: Sequence[Sample]) -> list[Cluster]:
    """The clusters without members that abstain, by first member."""
    able = {sample.index: sample for sample in voters(samples)}
    kept: list[Cluster] = []
    for cluster in clusters:
        members = tuple(index for index in cluster.members if index in able)
        if members:
            answer = cluster.answer if members == cluster.members else str(able[members[0]].answer)
            kept.append(replace(cluster, answer=answer, members=members))
    return sorted(kept, key=lambda cluster: cluster.members[0])


def _checked(sample: Sample) -> Sample:
    """A log-probability that is no number is none, and its sample abstains."""
    if sample.mean_logprob is None or math.isfinite(sample.mean_logprob):
        return sample
    return replace(sample, mean_logprob=None, abstain_reason="bad_logprob")


def _silenced(sample: Sample, reason: str) -> Sample:
    return replace(sample, abstain_reason=reason)


def _why_silent(sample: Sample) -> str:
    return sample.abstain_reason or "no_answer"


def _reasons(why: Mapping[int, str]) -> list[dict[str, Any]]:
    """Samples and what became of them, by index."""
    return [{"index": index, "reason": why[index]} for index in sorted(why)]


def _row(place: int, cluster: Cluster, weight: float, share: float | None) -> dict[str, Any]:
    return {
        "id": place,
        "answer": cluster.answer,
        "key": cluster.key,
        "rung": cluster.rung,
        "count": len(cluster.members),
        "weight": weight,
        "share": share,
        "members": list(cluster.members),
    }
