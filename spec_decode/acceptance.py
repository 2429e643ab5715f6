"""How often drafts are accepted: per request, with what others have shown behind it, and by rank of siblings.

Requests differ more than their mean says: a source that is nearly always right for one is useless for the next, and
long drafts pay for the first alone. So what is expected of a new request is a distribution over rates, that of the
requests before it (empirical Bayes: Robbins 1956), and its own trials narrow it down. A trial is the best draft at a
place that the verifier has reached. It knows nothing about tokens or costs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from spec_decode.tree_forms import Form, chain, ranks

Floats = npt.NDArray[np.float64]

RATES = np.array([0.02, 0.1, 0.3, 0.45, 0.6, 0.7, 0.8, 0.87, 0.93, 0.97, 0.99])  # [G] that a request may have
_LOG_ACCEPTED, _LOG_REJECTED = np.log(RATES), np.log1p(-RATES)
_POWERS = RATES ** np.arange(1, 65)[:, None]  # [64, G]
_UNSEEN = 0.3  # requests of each rate that have been seen before the first one
_REQUEST_DECAY = 0.96  # per trial: requests change
_NEXT_DECAY = 0.98  # per request: so does what is asked for
_MOST_SIBLINGS = 16
_SIBLING_WEIGHT = 4.0  # trials that an expectation is worth
_SIBLING_DECAY = 0.999
_FIRST = 0.7  # expected of the first sibling; of each other one as much of what is left


def bucket(matched: int) -> int:
    """Drafts are counted together by how many tokens they were found behind: 0 (drawn), 1, 2, 3-4, 5-8, 9 and more."""
    return 0 if matched == 0 else min((matched - 1).bit_length() + 1, 5)


@dataclass(frozen=True)
class Verified:
    """A draft and what became of it."""

    form: Form  # the siblings in the order in which they were verified
    path: Sequence[int]  # accepted nodes
    repaired: int = 0  # residuals that rounding has left without mass


class Population:
    """The requests that have been drafted for, by their rates; the older the less they count."""

    def __init__(self) -> None:
        self._seen = np.zeros(len(RATES))

    def expected(self) -> Floats:
        """[G] of the next request, sums to 1."""
        weights = self._seen + _UNSEEN
        return weights / weights.sum()

    def weights(self, apart: Floats) -> Floats:
        """[G] of the requests without one, which has this weight among them."""
        return np.maximum(self._seen - apart, 0.0) + _UNSEEN

    def move(self, before: Floats, after: Floats) -> None:
        """A request is known better; before: zeros for one that has not been seen."""
        decay = 1.0 if before.any() else _NEXT_DECAY
        self._seen = np.maximum(decay * self._seen - before, 0.0) + after


@dataclass
class _Tally:
    """Trials, the older the less they count."""

    accepted: float = 0.0
    tried: float = 0.0

    def add(self, accepted: bool) -> None:
        self.accepted = _SIBLING_DECAY * self.accepted + accepted
        self.tried = _SIBLING_DECAY * self.tried + 1

    def rate(self, expected: float) -> float:
        return (self.accepted + _SIBLING_WEIGHT * expected) / (self.tried + _SIBLING_WEIGHT)


@dataclass
class Acceptance:
    """Of one source, over all requests."""

    _populations: dict[int, Population] = field(default_factory=dict)  # by bucket
    _siblings: list[_Tally] = field(default_factory=list)  # by rank, of all places that had so many

    def population(self, bucket: int) -> Population:
        return self._populations.setdefault(bucket, Population())

    def by_rank(self, siblings: int) -> list[float]:
        """The probability of the first, second, ... sibling to be the accepted one."""
        prior = [_FIRST * (1 - _FIRST) ** rank for rank in range(siblings)]
        known = [*self._siblings, *[_Tally()] * siblings]
        return [tally.rate(expected) for tally, expected in zip(known, prior, strict=False)]

    def add(self, draft: Verified) -> tuple[int, int]:
        """Count a draft. Returns how many first siblings were accepted and rejected."""
        if draft.form == chain(len(draft.form)):
            return len(draft.path), int(len(draft.path) < len(draft.form))
        children = Counter(draft.form)
        rank_of = ranks(draft.form)
        taken = {draft.form[node]: rank_of[node] for node in draft.path}  # place -> rank of the accepted child
        accepted = rejected = 0
        for place in (-1, *draft.path):
            for rank in range(min(children[place], _MOST_SIBLINGS)):
                if rank == len(self._siblings):
                    self._siblings.append(_Tally())
                self._siblings[rank].add(taken.get(place) == rank)
            if children[place]:
                accepted += taken.get(place) == 0
                rejected += taken.get(place) != 0
        return accepted, rejected


class _Rate:
    """Of one request, as far as it is known: a distribution over `RATES`."""

    def __init__(self, population: Population) -> None:
        self._population = population
        self._evidence = np.zeros(len(RATES))  # log-likelihood of its trials, up to a constant
        self._posterior = np.zeros(len(RATES))  # as of its last trial; before the first one it is in no population

    def posterior(self) -> Floats:
        """[G], sums to 1."""
        return self._posterior if self._posterior.any() else self._population.expected()

    def add(self, accepted: int, rejected: int) -> None:
        kept = _REQUEST_DECAY ** (accepted + rejected) * self._evidence
        self._evidence = kept + accepted * _LOG_ACCEPTED + rejected * _LOG_REJECTED
        before, others = self._posterior, self._population.weights(self._posterior)
        weights = others * np.exp(self._evidence - self._evidence.max())
        self._posterior = weights / weights.sum()
        self._population.move(before, self._posterior)


@dataclass
class RequestAcceptance:
    """Of one request's drafts from one source."""

    source: Acceptance
    _own: dict[int, _Rate] = field(default_factory=dict)  # by bucket

    def add(self, draft: Verified, bucket: int) -> None:
        self._rate(bucket).add(*self.source.add(draft))

    def gains(self, form: Form, bucket: int) -> Floats:
        """[N] the probability of each node of a tree to be accepted; it falls along every path."""
        posterior = self._rate(bucket).posterior()
        if form == chain(len(form)):
            return _POWERS[: len(form)] @ posterior
        rank_of = ranks(form)
        first, *_ = by_rank = self.source.by_rank(1 + max(rank_of))
        chances = [RATES * min(1.0, other / first) for other in by_rank]
        reached: list[Floats] = []
        for parent, rank in zip(form, rank_of, strict=True):
            reached.append(chances[rank] * (reached[parent] if parent >= 0 else 1.0))
        return np.array(reached) @ posterior

    def _rate(self, bucket: int) -> _Rate:
        if bucket not in self._own:
            self._own[bucket] = _Rate(self.source.population(bucket))
        return self._own[bucket]
