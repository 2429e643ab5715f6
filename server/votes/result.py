"""A vote that has been held, as `drafthouse.voting` reports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.votes.endings import label
from server.votes.request import VoteRequest
from voting.answers.clusters import NOT_TRANSITIVE
from voting.contract import Cluster, Sample
from voting.outcome import Outcome, hold
from voting.poll import Reading
from voting.stopping.watch import Watch, read_stop

NOT_IID = "not_iid"  # samples depend on each other


@dataclass(frozen=True)
class Result:
    """The outcome, and what follows from the samples besides it."""

    outcome: Outcome
    stop: Mapping[str, Any]  # what became of the stopping rule
    cert: Mapping[str, Any] | None  # None: samples depend on each other, or it means nothing for other reasons
    aside: tuple[Sample, ...] = ()  # samples that the stopping rule has looked at, and the answer is not taken from

    def report(self, vote: VoteRequest) -> dict[str, Any]:
        """Finite JSON."""
        said = {**vote.report(), **self.outcome.report()}
        used = len(self.outcome.samples) + len(self.aside)
        said |= {"used_samples": used, "stop": {**said["stop"], **self.stop}, "cert": self.cert}
        return said | ({"sample_records": self.outcome.records(self.aside)} if vote.return_samples else {})


@dataclass(frozen=True)
class Held:
    """A vote that has been held, with all that it takes to look at it again."""

    vote: VoteRequest
    result: Result
    reading: Reading
    tokens: Mapping[str, int]
    budget: Mapping[str, int] | None = None  # where samples went from prompt to prompt

    @property
    def size(self) -> int:
        """Characters and numbers of the report, about."""
        samples = (*self.result.outcome.samples, *self.result.aside)
        answers = sum(len(sample.answer or "") for sample in samples)
        return answers + (sum(map(_length, samples)) if self.vote.return_samples else 0)

    def report(self) -> dict[str, Any]:
        """Finite JSON."""
        said = self.result.report(self.vote) | {"tokens": dict(self.tokens)}
        return said if self.budget is None else said | {"budget": dict(self.budget)}


def decide(
    vote: VoteRequest, samples: Sequence[Sample], reading: Reading, watch: Watch, flags: Sequence[str]
) -> Result:
    """Raises SamplerError for samples that lack what the rule needs. Takes a while: fits, and comparisons of answers.

    samples: read, and at least one. watch: has been fed all of them, unless its rule never fires.
    """
    found = reading.partition(samples)
    flags = (*flags, *found.flags)
    basis = basis_of(watch, samples)
    counted = [samples[place] for place in basis]
    outcome = hold(
        counted, found.clusters, vote.rule, vote.values, use_sample_weights=vote.use_sample_weights, flags=flags
    )
    said = watch.report()
    cert = said.pop("cert", None)  # of a stopping rule that has one
    if NOT_IID in flags or NOT_TRANSITIVE in flags or any(sample.weight != 1 for sample in samples):
        cert = None
    elif cert is None:
        labels = ((label(sample, found.clusters), 1.0) for sample in samples)
        cert = read_stop("mode_cert").over(labels).report()["cert"]
    for one in (cert, said.get("heuristic")):
        if one is not None:
            one["target"] = _place_of(one["target"], found.clusters, outcome)
    aside = tuple(sample for place, sample in enumerate(samples) if place not in basis)
    return Result(outcome, said, cert, aside)


def _length(sample: Sample) -> int:
    """As `Held.size`, of a sample's record."""
    return sum(map(len, (sample.text, sample.token_ids or (), sample.entropies or (), sample.confidences or ())))


def basis_of(watch: Watch, samples: Sequence[Sample]) -> range:
    """Places of the samples that the answer is taken from."""
    return watch.basis if watch.fired else range(len(samples))


def _place_of(first: int | None, clusters: Sequence[Cluster], outcome: Outcome) -> int | None:
    """Place in the outcome of the cluster whose first member is this. That one may have no vote there; None: none of
    its members has."""
    members = {index for cluster in clusters if cluster.members[0] == first for index in cluster.members}
    return next((place for place, one in enumerate(outcome.clusters) if members.intersection(one.members)), None)
