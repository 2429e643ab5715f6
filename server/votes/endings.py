"""What may close a vote before all samples are drawn. Each looks at every sample once, in index order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from voting.contract import Cluster, Sample, Screening, VotingRule
from voting.outcome import hold
from voting.stopping.watch import Watch


class Ending(Protocol):
    flag: str | None  # of a vote that it has closed

    def look(self, samples: Sequence[Sample], clusters: Sequence[Cluster]) -> bool:
        """Whether these samples are enough. Called with every prefix in turn, until it says so."""
        ...


class Stopping:
    """A stopping rule, which reports itself what it has done."""

    flag: str | None = None

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def look(self, samples: Sequence[Sample], clusters: Sequence[Cluster]) -> bool:
        newest = samples[-1]
        return self._watch.feed(label(newest, clusters), newest.q if newest.mean_logprob is not None else 1.0)


class Consensus:
    """Of a rule that screens: after its warm-up the leading answer has enough of the weight."""

    flag: str | None = "consensus"

    def __init__(self, rule: VotingRule, values: Mapping[str, Any]) -> None:
        assert isinstance(rule, Screening)
        self._rule, self._screening, self._values = rule, rule, values

    def look(self, samples: Sequence[Sample], clusters: Sequence[Cluster]) -> bool:
        if len(samples) <= self._values["warmup"]:
            return False
        return self._screening.has_consensus(hold(samples, clusters, self._rule, self._values).tally, self._values)


def label(sample: Sample, clusters: Sequence[Cluster]) -> int | None:
    """The sample's cluster, by its first member: clusters that later samples join or begin do not change it. None: it
    abstains."""
    return next((cluster.members[0] for cluster in clusters if sample.index in cluster.members), None)
