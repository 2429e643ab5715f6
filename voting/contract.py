"""The contract of voting rules: samples of one prompt in, a table of weighted answer clusters out.

Knows nothing about how samples are drawn. Log-probabilities are those of the raw model; weights are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from samplers.registry import Registry


@dataclass(frozen=True)
class Sample:
    """One finished choice."""

    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # raw, one per token, an ending EOS included
    text: str
    answer: str | None  # None: none could be extracted; the sample abstains


@dataclass(frozen=True)
class Cluster:
    """Samples whose answers are equivalent."""

    answer: str
    members: tuple[int, ...]  # sample indices
    weight: float
    share: float  # of all weight outside the abstaining samples


@dataclass(frozen=True)
class Table:
    """Clusters, heaviest first; ties go to the smaller first index."""

    clusters: tuple[Cluster, ...]
    abstained: tuple[int, ...]


class VotingRule(Protocol):
    """Weighs the answers of repeated samples."""

    name: ClassVar[str]

    def tally(self, samples: Sequence[Sample]) -> Table:
        """A pure function of the samples in index order."""
        ...


VOTING_RULES: Registry[VotingRule] = Registry("voting rule", "drafthouse.voting_rules")
