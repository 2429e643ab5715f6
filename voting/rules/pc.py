"""Perplexity consistency: an answer weighs what its distinct paths weigh together (arXiv 2510.15444)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from samplers.contract import Param
from voting.contract import VOTING_RULES, Cluster, Sample, Tally
from voting.rule import BaseRule, by_cluster, distinct, voters

SCORE = Param("score", str, "mean", choices=("mean", "joint"))
DUPLICATES = Param("duplicates", str, "once", choices=("once", "each"))


@VOTING_RULES.register
class PerplexityConsistency(BaseRule):
    """A path's weight is q, the exponential of its mean log-probability, or with `score` joint its probability. Equal
    completions are one path; sample weights do not count, since q says how probable a path is already. With
    `duplicates` each, equal completions count as if they were different paths: where few texts are possible, the right
    one is the one that repeats.

    Joint probabilities are divided by that of the most probable path, or none of them would be a number.
    """

    name = "pc"
    params = (SCORE, DUPLICATES)

    def needs(self, values: Mapping[str, Any]) -> frozenset[str]:
        return needs_of(values["score"])

    def tally(self, samples: Sequence[Sample], clusters: Sequence[Cluster], values: Mapping[str, Any]) -> Tally:
        worth = path_weights(samples, values)
        return Tally(by_cluster(clusters, worth), sample_weights=worth)


def needs_of(score: str) -> frozenset[str]:
    return frozenset({"logprobs"} if score == "mean" else {"logprobs", "lengths"})


def paths_of(samples: Sequence[Sample], values: Mapping[str, Any]) -> list[Sample]:
    """The samples that stand for a path each, of those that do not abstain."""
    return voters(samples) if values["duplicates"] == "each" else distinct(voters(samples))


def path_weights(samples: Sequence[Sample], values: Mapping[str, Any]) -> dict[int, float]:
    """Sample index -> weight, of each path."""
    paths = paths_of(samples, values)
    if values["score"] == "mean":
        return {sample.index: sample.q for sample in paths}
    joint = {sample.index: sample.sum_logprob for sample in paths}
    top = max(joint.values())
    return {index: math.exp(value - top) for index, value in joint.items()}
