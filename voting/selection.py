"""Rules that pick one sample by a score of its own instead of weighing answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from samplers.contract import SamplerError
from voting.contract import TIE, Cluster, Sample, Tally
from voting.rule import by_cluster, voters


def pick(clusters: Sequence[Cluster], scores: Mapping[int, float]) -> Tally:
    """The sample with the largest score; of tied ones the first. A cluster weighs what its best sample scores, so
    weights do not add up. scores: of every member, finite."""
    choice = first_best(scores)
    return Tally(by_cluster(clusters, scores, max), choice, shares=False, sample_weights=scores)


def first_best(scores: Mapping[int, float]) -> int:
    """The smallest key among those whose values are tied with the largest."""
    best = max(scores.values())
    return min(index for index, score in scores.items() if tied(score, best))


def tied(one: float, other: float) -> bool:
    return abs(one - other) <= TIE * max(abs(one), abs(other))


def scores_of(samples: Sequence[Sample], scorer: str) -> dict[int, float]:
    """Sample index -> score, of those that do not abstain. A single sample needs none and has 1."""
    able = voters(samples)
    return {sample.index: sample.scores[scorer] if len(able) > 1 else 1.0 for sample in able}


def unscored(samples: Sequence[Sample], scorer: str) -> dict[int, str]:
    """Who abstains for want of a finite score. Raises SamplerError where the scorer was never asked."""
    able = voters(samples)
    if len(able) < 2:
        return {}
    if not any(scorer in sample.scores for sample in able):
        raise SamplerError(f"the samples have no scores of '{scorer}'", "scores")
    return {sample.index: "no_score" for sample in able if not math.isfinite(sample.scores.get(scorer, math.nan))}
