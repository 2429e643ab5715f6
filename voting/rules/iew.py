"""Inverse-entropy voting: certain paths weigh more (arXiv 2511.02309)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from samplers.contract import Param
from voting.contract import VOTING_RULES, Cluster, Drawing, Sample, Tally
from voting.rule import BaseRule, by_cluster, voters

_LEAST = 1e-10  # nats, what a smaller mean entropy counts as


@VOTING_RULES.register
class InverseEntropy(BaseRule):
    """A sample is worth 1 / H, with H the mean entropy of its tokens' renormalised `topk` most probable continuations,
    but at most `max_ratio` times the median sample: one that is all but deterministic does not decide alone.

    `mode` says how samples are drawn: independently, or in a chain (`voting/chain.py`) in which each sees the one
    before, or with `history` all, and is to refine it. Each votes with its own weight, times its sample weight.
    """

    name = "iew"
    params = (
        Param("mode", str, "parallel", choices=("parallel", "sequential")),
        Param("history", str, "last", choices=("last", "all")),
        Param("topk", int, 20, low=2, high=100),
        Param("max_ratio", float, 10.0, low=1, high=1e12),
    )

    def needs(self, values: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({"entropies"})

    def drawing(self, values: Mapping[str, Any]) -> Drawing:
        return Drawing.CHAINED if values["mode"] == "sequential" else Drawing.INDEPENDENT

    def tally(self, samples: Sequence[Sample], clusters: Sequence[Cluster], values: Mapping[str, Any]) -> Tally:
        able = voters(samples)
        inverse = {sample.index: 1 / max(mean_entropy(sample), _LEAST) for sample in able}
        cap = values["max_ratio"] * statistics.median(inverse.values())
        worth = {sample.index: sample.weight * min(inverse[sample.index], cap) for sample in able}
        capped = [index for index, weight in inverse.items() if weight > cap]
        notes = {"capped": capped, "topk": values["topk"], "renormalised": True}
        return Tally(by_cluster(clusters, worth), sample_weights=worth, notes=notes)


def mean_entropy(sample: Sample) -> float:
    """In nats per token. Raises ValueError where entropies are not known or there are no tokens."""
    if not sample.entropies:
        raise ValueError(f"sample {sample.index} has no entropies")
    return math.fsum(sample.entropies) / len(sample.entropies)
