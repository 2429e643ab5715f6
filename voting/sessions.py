"""A vote that a person may correct: the outcome, the verdicts so far, and what they make of it.

An immutable value: a verdict gives a new state, and the log alone leads from the outcome to it. Knows nothing about
HTTP, clocks or expiry. (voting.md section 15)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from samplers.contract import SamplerError
from voting.answers.clusters import Compare, partition
from voting.answers.equivalence import Equivalence
from voting.answers.finders import as_option
from voting.contract import Sample
from voting.outcome import Outcome, leader, representative
from voting.selection import tied
from voting.verdicts import ACCEPT, REJECT, UnknownTarget, Verdict, VoteClosed

Find = Callable[[str], int | None]  # an answer -> the place of the cluster that says the same


@dataclass(frozen=True)
class VoteSession:
    """Clusters that are rejected weigh nothing and cannot win; whoever is accepted, or corrected, has won."""

    outcome: Outcome
    find: Find = field(repr=False, compare=False)
    log: tuple[Verdict, ...] = ()
    rejected: frozenset[int] = frozenset()  # places of clusters
    status: str = "open"  # then 'accepted' or 'corrected'
    decided: int | None = None  # place of the cluster that has won; None: not decided, or an answer that nobody gave
    correction: str | None = None  # the answer as it was corrected

    @property
    def winner(self) -> int | None:
        """Place of the cluster that leads. None: there is none left, or the answer is one that nobody gave."""
        if self.decided is not None or self.correction is not None:
            return self.decided
        if self.outcome.winner not in self.rejected:
            return self.outcome.winner
        left = self._left()
        if not left:
            return None
        clusters = [self.outcome.clusters[place] for place in left]
        first = leader([self.outcome.tally.weights[place] for place in left], clusters, self.outcome.samples)
        return left[first.place]

    @property
    def tie(self) -> bool:
        weights, first = self.outcome.tally.weights, self.winner
        if first is None or self.status != "open":
            return False
        return sum(tied(weights[place], weights[first]) for place in self._left()) > 1

    @property
    def answer(self) -> str | None:
        if self.correction is not None:
            return self.correction
        return None if self.winner is None else self.outcome.clusters[self.winner].answer

    @property
    def representative(self) -> int | None:
        """Index of the sample to be shown. None: no sample gives the answer."""
        if self.winner is None:
            return None
        if self.winner == self.outcome.winner:
            return self.outcome.representative
        return representative(self.outcome.clusters[self.winner], self.outcome.tally, self.outcome.samples)

    @property
    def weights(self) -> tuple[float, ...]:
        """Per cluster of the outcome."""
        given = enumerate(self.outcome.tally.weights)
        return tuple(0.0 if place in self.rejected else weight for place, weight in given)

    @property
    def shares(self) -> tuple[float | None, ...]:
        total = math.fsum(self.weights)
        if not self.outcome.tally.shares or not total > 0:
            return (None,) * len(self.weights)
        return tuple(weight / total for weight in self.weights)

    @property
    def confidence(self) -> float | None:
        """The rule's own as long as nothing is rejected, then the share among what is left."""
        if self.winner is None:
            return None
        if not self.rejected and self.winner == self.outcome.winner:
            return self.outcome.confidence
        return self.shares[self.winner]

    def after(self, verdict: Verdict) -> VoteSession:
        if self.status != "open":
            raise VoteClosed("the vote is closed", "verdict")
        if verdict.target != "cluster":
            raise UnknownTarget(f"the vote has no test {verdict.id}", "test_id")
        if not 0 <= verdict.id < len(self.outcome.clusters):
            raise UnknownTarget(f"the vote has no cluster {verdict.id}", "cluster_id")
        logged = replace(self, log=(*self.log, verdict))
        if verdict.verdict == REJECT:
            return replace(logged, rejected=self.rejected | {verdict.id})
        if verdict.verdict == ACCEPT:
            return replace(logged, rejected=self.rejected - {verdict.id}, status="accepted", decided=verdict.id)
        if verdict.value is None:
            raise SamplerError("'value' is required", "value")
        place = self.find(verdict.value)
        kept = self.rejected - {place}
        return replace(logged, rejected=kept, status="corrected", decided=place, correction=verdict.value)

    def report(self) -> dict[str, Any]:
        """Finite JSON: the outcome's report as it stands now, with `status` and `log`. A cluster made by a correction
        is the last one and has no members."""
        before = self.outcome.report()
        rows = [
            row | {"weight": weight, "share": share, "rejected": place in self.rejected}
            for place, (row, weight, share) in enumerate(
                zip(before["clusters"], self.weights, self.shares, strict=True)
            )
        ]
        if self.status == "corrected" and self.decided is None:
            rows.append(_created(len(rows), self.correction))
        return before | {
            "answer": self.answer,
            "confidence": self.confidence,
            "tie": self.tie,
            "clusters": rows,
            "status": self.status,
            "log": [verdict.report() for verdict in self.log],
        }

    def _left(self) -> list[int]:
        return [place for place in range(len(self.outcome.clusters)) if place not in self.rejected]


def finder(outcome: Outcome, equivalence: Equivalence, compare: Compare | None = None) -> Find:
    """By the relation that made the outcome's clusters; arguments as of `partition`."""
    cluster_of = {index: place for place, cluster in enumerate(outcome.clusters) for index in cluster.members}
    said = [sample for sample in outcome.samples if sample.index in cluster_of]
    options = any(sample.option for sample in said)

    def find(answer: str) -> int | None:
        letter = as_option(answer) if options else None
        asked = Sample(outcome.samples[-1].index + 1, answer, letter or answer, option=letter is not None)
        clusters = partition([*said, asked], equivalence, compare).clusters
        alike = next(cluster.members for cluster in clusters if asked.index in cluster.members)
        return cluster_of.get(alike[0])

    return find


def _created(place: int, answer: str | None) -> dict[str, Any]:
    empty: dict[str, Any] = {"rung": 0, "count": 0, "weight": 0.0, "share": None, "members": [], "rejected": False}
    return {"id": place, "answer": answer, "key": answer, **empty}
