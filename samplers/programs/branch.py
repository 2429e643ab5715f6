"""A continuation of the prompt while a program works on it: tokens, what is known about them, how it has ended.

Plain bookkeeping: whoever runs the program gives every branch its share of the KV memory when the program next asks for
rows, so forks and truncations cost nothing until then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from samplers.rng import Stream, child


@dataclass(frozen=True, slots=True)
class Token:
    """A token and what was known when it was chosen."""

    id: int
    logprob: float  # ln p, of the model's own row
    logq: float  # ln q, of the row as the request's stages have shaped it
    score: Any = None  # what the request wants listed about it; made by the engine and passed through


@dataclass(frozen=True, slots=True)
class Mixture:
    """The place of a token taken by several: their input embeddings, added up by weight."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]  # of the same number, summing to 1


@dataclass(frozen=True, slots=True)
class End:
    """How a text ended."""

    reason: str  # one of `REASONS`
    token: int | None = None  # the ending id that did it, the last of the text


REASONS = ("stop", "length", "error")
DEAD_END = End("error")  # the request's masks leave no token to go on with


@dataclass(frozen=True)
class Limits:
    """What ends a branch."""

    max_tokens: int
    min_tokens: int = 0
    ending_ids: frozenset[int] = frozenset()  # EOS and stop ids
    stops: tuple[bytes, ...] = ()  # stop strings in UTF-8
    pieces: Sequence[bytes] = ()  # of every token id, to find stop strings in
    special_ids: frozenset[int] = frozenset()  # not part of the text

    def end(self, ids: Sequence[int]) -> End | None:
        """How a text of these output tokens has ended with its last one; None: it has not."""
        last = ids[-1]
        if len(ids) > self.min_tokens:
            if last in self.ending_ids:
                return End("stop", last)
            if self.stops and self._stopped(ids):
                return End("stop")
        return End("length") if len(ids) >= self.max_tokens else None

    def _stopped(self, ids: Sequence[int]) -> bool:
        """Whether a stop string ends in the last token: one that has come too early never counts."""
        new = self.piece(ids[-1])
        if not new:
            return False
        tail, wanted = new, max(map(len, self.stops)) - 1 + len(new)
        for token in reversed(ids[:-1]):
            if len(tail) >= wanted:
                break
            tail = self.piece(token) + tail
        return any(stop in tail[-(len(stop) - 1 + len(new)) :] for stop in self.stops)

    def piece(self, token: int) -> bytes:
        """What the token adds to the text."""
        return b"" if token in self.special_ids or token >= len(self.pieces) else self.pieces[token]


class Branch:
    """Output tokens behind the prompt. Made by `fork`; used by one program, from one thread."""

    __slots__ = ("_made", "end", "ids", "kept", "limits", "mixtures", "origin", "released", "stream", "tokens")

    def __init__(self, limits: Limits, stream: Stream, made: list[Branch], origin: Branch | None = None) -> None:
        """`made` is the list that every branch of the request is entered in."""
        self.limits = limits
        self.stream = stream  # random numbers of what is drawn here
        self.origin = origin  # whose memory it shares, until it has its own; None: the prompt
        self.ids: list[int] = []
        self.tokens: list[Token] = []
        self.mixtures: dict[int, Mixture] = {}  # by position
        self.end: End | None = None
        self.released = False
        self.kept = 0  # for whoever holds the memory: so many of the ids are as they were when it last looked
        self._made = made
        made.append(self)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def logprob(self) -> float:
        """ln p of all its tokens."""
        return math.fsum(token.logprob for token in self.tokens)

    def push(self, token: Token) -> Branch:
        """Append a token; `end` is set if it ends the text. Returns the branch itself."""
        assert self.end is None and not self.released
        self.ids.append(token.id)
        self.tokens.append(token)
        self.end = self.limits.end(self.ids)
        return self

    def mix(self, mixture: Mixture) -> None:
        """Append a mixture. It ends nothing: whoever mixes counts."""
        assert not self.released
        self.mixtures[len(self.ids)] = mixture
        self.ids.append(mixture.ids[0])
        self.tokens.append(Token(mixture.ids[0], math.nan, math.nan))

    def fork(self, ordinal: int = 0, length: int | None = None) -> Branch:
        """A second branch with the same first `length` tokens, all unless given. `ordinal` 0 keeps the random stream,
        any other has one of its own (samplers.md section 4: child `ordinal` of a fork at position `length`)."""
        assert not self.released
        length = len(self.ids) if length is None else length
        origin = self.origin if self in self._made else self  # what nobody has seen yet holds no memory of its own
        branch = Branch(self.limits, child(self.stream, length, ordinal), self._made, origin)
        branch.ids, branch.tokens, branch.mixtures = self.ids.copy(), self.tokens.copy(), self.mixtures.copy()
        branch.end, branch.kept = self.end, self.kept
        return branch.truncate(length)

    def truncate(self, length: int) -> Branch:
        """Keep the first `length` output tokens. Returns the branch itself."""
        assert 0 <= length <= len(self.ids) and not self.released
        if length < len(self.ids):
            del self.ids[length:], self.tokens[length:]
            self.mixtures = {at: mixture for at, mixture in self.mixtures.items() if at < length}
            self.kept = min(self.kept, length)
            self.end = None
        return self

    def release(self) -> None:
        """Nothing more will be asked of it. What a program does not release goes when its request ends."""
        self.released = True
