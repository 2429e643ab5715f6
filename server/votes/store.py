"""Votes that may still be looked at and corrected: in memory, for a time, and only for who has held them.

Knows nothing about HTTP requests. Lives in the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from server.errors import ApiError, bad_request
from server.votes.executor import CodeTest
from server.votes.result import Held
from voting.code_session import CodeSession
from voting.contract import Sample
from voting.sessions import VoteSession
from voting.verdicts import Verdict

TTL_S = 3600.0
MOST_VOTES = 1024
MOST_BYTES = 256 * 2**20
MOST_VERDICTS = 1024  # on one vote
# bytes of memory, about
_TOKEN, _NUMBER, _SAMPLE, _VERDICT, _FLAG = 36, 32, 1024, 512, 8
_CHARACTER = 4


@dataclass
class StoredVote:
    """One vote. Whoever changes its session holds its lock meanwhile."""

    id: str
    owner: str  # who alone may see it
    created: float  # seconds since the epoch
    expires_at: float
    model: str | None  # as requested
    held: Held
    session: VoteSession | CodeSession
    usage: Mapping[str, Any]
    response: bytes | None  # JSON of the chat or text completion; None: nothing was drawn
    tests: tuple[CodeTest, ...] = ()  # as they were at first
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def open(self) -> bool:
        return self.session.status == "open"

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        samples = (*self.held.result.outcome.samples, *self.held.result.aside)
        tests = _CHARACTER * sum(len(test.input) + len(test.expected) for test in self.tests)
        passes = _FLAG * len(self.tests) * len(samples)
        verdicts = sum(map(_size_of_verdict, self.session.log))
        return sum(map(_size_of_sample, samples)) + tests + passes + verdicts + len(self.response or b"")


def _size_of_sample(sample: Sample) -> int:
    """All that a request may bring along; an answer is kept as it was given and as it is compared."""
    names = (sample.text, sample.finish_reason, sample.abstain_reason or "", *sample.scores)
    characters = sum(map(len, names)) + 2 * len(sample.answer or "")
    numbers = len(sample.entropies or ()) + len(sample.confidences or ()) + 4 * len(sample.scores)
    return _SAMPLE + _CHARACTER * characters + _TOKEN * len(sample.token_ids or ()) + _NUMBER * numbers


def _size_of_verdict(verdict: Verdict) -> int:
    return _VERDICT + _CHARACTER * len(verdict.value or "") + _FLAG * len(verdict.column or ())


class VoteStore:
    """At most so many votes, and so many bytes. Expired ones go first, then those that were closed first, then those
    that were held first."""

    def __init__(
        self,
        ttl_s: float = TTL_S,
        most: int = MOST_VOTES,
        most_bytes: int = MOST_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.ttl_s = ttl_s
        self.clock = clock
        self._most = most
        self._most_bytes = most_bytes
        self._votes: dict[str, StoredVote] = {}  # in the order in which they expire
        self._closed: dict[str, None] = {}  # ids, in the order in which they were closed
        self._sizes: dict[str, int] = {}
        self._bytes = 0

    @property
    def open(self) -> int:
        """How many votes verdicts may change."""
        self._expire()
        return len(self._votes) - len(self._closed)

    def __len__(self) -> int:
        self._expire()
        return len(self._votes)

    def add(self, vote: StoredVote) -> None:
        """Raises a 400 for one that is larger than all may be together."""
        self._expire()
        self._weigh(vote.id, vote.size)
        self._votes[vote.id] = vote
        self._note(vote)

    def find(self, identity: str, owner: str) -> StoredVote:
        """Raises a 404, for other people's votes too."""
        self._expire()
        vote = self._votes.get(identity)
        if vote is None or vote.owner != owner:
            raise ApiError(404, f"there is no vote '{identity:.100}', or no longer", "id", "vote_not_found")
        return vote

    def change(self, vote: StoredVote, session: VoteSession | CodeSession) -> None:
        """Raises as `find` if the vote has gone meanwhile, and as `add`; nothing has changed then."""
        self.find(vote.id, vote.owner)
        before, vote.session = vote.session, session
        try:
            self._weigh(vote.id, vote.size)
        except ApiError:
            vote.session = before
            raise
        self._note(vote)

    def _weigh(self, identity: str, size: int) -> None:
        """Makes room for a vote of this size, whose own place is not given away."""
        if size > self._most_bytes:
            raise bad_request(
                f"the vote takes {size} bytes, and this server keeps {self._most_bytes}", None, "vote_too_large"
            )
        self._bytes += size - self._sizes.pop(identity, 0)
        self._sizes[identity] = size
        while len(self._sizes) > self._most or self._bytes > self._most_bytes:
            self._drop(next(one for one in chain(self._closed, self._votes) if one != identity))

    def _note(self, vote: StoredVote) -> None:
        if not vote.open:
            self._closed.setdefault(vote.id)

    def _expire(self) -> None:
        now = self.clock()
        while self._votes and (first := next(iter(self._votes.values()))).expires_at <= now:
            self._drop(first.id)

    def _drop(self, identity: str) -> None:
        del self._votes[identity]
        self._closed.pop(identity, None)
        self._bytes -= self._sizes.pop(identity)
