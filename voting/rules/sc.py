"""Self-consistency: the answer that most samples give (Wang et al., arXiv 2203.11171)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from voting.contract import VOTING_RULES, Cluster, Sample, Tally
from voting.rule import BaseRule, by_cluster, voters


@VOTING_RULES.register
class SelfConsistency(BaseRule):
    """Every sample is worth its sample weight, normally 1. Equal completions count as often as they were drawn."""

    name = "sc"

    def tally(self, samples: Sequence[Sample], clusters: Sequence[Cluster], values: Mapping[str, Any]) -> Tally:
        return count(voters(samples), clusters)


def count(counted: Sequence[Sample], clusters: Sequence[Cluster]) -> Tally:
    """The vote in which these samples count and no others."""
    worth = {sample.index: sample.weight for sample in counted}
    return Tally(by_cluster(clusters, worth), sample_weights=worth)
