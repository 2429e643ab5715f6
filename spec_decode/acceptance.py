"""How often drafts are accepted: per request with what is usual for their source behind it, and by rank of siblings.

A trial is the best draft at a place that the verifier has reached. It knows nothing about tokens or costs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from spec_decode.tree_forms import Form, ranks

EXPECTED = 0.7  # before anything has been tried
_WEIGHT = 4.0  # trials that an expectation is worth
_REQUEST_DECAY = 0.95  # per step
_SOURCE_DECAY = 0.999
_MOST_SIBLINGS = 16


def bucket(matched: int) -> int:
    """Drafts are counted together by how many tokens they were found behind: 0 (drawn), 1, 2, 3-4, 5-8, 9 and more."""
    return 0 if matched == 0 else min((matched - 1).bit_length() + 1, 5)


@dataclass
class Tally:
    """Trials, the older the less they count."""

    accepted: float = 0.0
    tried: float = 0.0

    def add(self, accepted: int, tried: int, decay: float) -> None:
        self.accepted = decay * self.accepted + accepted
        self.tried = decay * self.tried + tried

    def rate(self, expected: float) -> float:
        return (self.accepted + _WEIGHT * expected) / (self.tried + _WEIGHT)


@dataclass(frozen=True)
class Verified:
    """A draft and what became of it."""

    form: Form  # the siblings in the order in which they were verified
    path: Sequence[int]  # accepted nodes
    repaired: int = 0  # residuals that rounding has left without mass


@dataclass
class Acceptance:
    """Of one source."""

    expected: float = EXPECTED
    _usual: dict[int, Tally] = field(default_factory=dict)  # by bucket, of all requests
    _siblings: list[Tally] = field(default_factory=list)  # by rank, of all places that had so many

    def usual(self, bucket: int) -> float:
        return self._usual.get(bucket, Tally()).rate(self.expected)

    def by_rank(self, siblings: int) -> list[float]:
        """The probability of the first, second, ... sibling to be the accepted one."""
        prior = [self.expected * (1 - self.expected) ** rank for rank in range(siblings)]
        known = [*self._siblings, *[Tally()] * siblings]
        return [tally.rate(expected) for tally, expected in zip(known, prior, strict=False)]

    def add(self, draft: Verified, bucket: int) -> Tally:
        """Count a draft; the trials of its first siblings, for the request's own tally."""
        children = Counter(draft.form)
        rank_of = ranks(draft.form)
        taken = {draft.form[node]: rank_of[node] for node in draft.path}  # place -> rank of the accepted child
        trials = Tally()
        for place in (-1, *draft.path):
            for rank in range(min(children[place], _MOST_SIBLINGS)):
                if rank == len(self._siblings):
                    self._siblings.append(Tally())
                self._siblings[rank].add(taken.get(place) == rank, 1, _SOURCE_DECAY)
            if children[place]:
                trials.add(taken.get(place) == 0, 1, 1.0)
        self._usual.setdefault(bucket, Tally()).add(int(trials.accepted), int(trials.tried), _SOURCE_DECAY)
        return trials


@dataclass
class RequestAcceptance:
    """Of one request's drafts from one source."""

    source: Acceptance
    _own: dict[int, Tally] = field(default_factory=dict)  # by bucket

    def rate(self, bucket: int) -> float:
        """The probability that the best draft at a place is accepted."""
        return self._own.get(bucket, Tally()).rate(self.source.usual(bucket))

    def add(self, draft: Verified, bucket: int) -> None:
        trials = self.source.add(draft, bucket)
        self._own.setdefault(bucket, Tally()).add(int(trials.accepted), int(trials.tried), _REQUEST_DECAY)

    def gains(self, form: Form, bucket: int) -> list[float]:
        """The probability of each node of a tree to be accepted; it falls along every path."""
        rank_of = ranks(form)
        first, *_ = by_rank = self.source.by_rank(1 + max(rank_of, default=0))
        own = self.rate(bucket)
        chances = [own * min(1.0, other / first) for other in by_rank]
        result: list[float] = []
        for parent, rank in zip(form, rank_of, strict=True):
            result.append(chances[rank] * (result[parent] if parent >= 0 else 1.0))
        return result
