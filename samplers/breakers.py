"""Strings that end a repetition: which tokens contain one, alone or together with the tokens before them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from samplers.histories import Ids

LONGEST_BYTES = 64  # of one breaker
TAIL = LONGEST_BYTES - 1  # bytes of the text so far that a breaker can begin in
_NOTHING = -1  # stands for a byte that is not there
Bytes = npt.NDArray[np.int16]  # bytes and _NOTHING
Flags = npt.NDArray[np.bool_]


class Pieces:
    """The bytes of every token id, one after the other; ids beyond them have none."""

    def __init__(self, pieces: Sequence[bytes], vocab: int) -> None:
        self._pieces = [*pieces[:vocab], *[b""] * (vocab - len(pieces))]
        self.text = b"".join(self._pieces)
        self.ends = np.cumsum([len(piece) for piece in self._pieces])  # [V]
        self.starts = np.concatenate([[0], self.ends[:-1]])  # [V]
        self._bytes = np.concatenate([np.frombuffer(self.text, np.uint8), [0]]).astype(np.int16)

    def of(self, ids: Sequence[int]) -> list[bytes]:
        return [self._pieces[token] for token in ids]

    def heads(self, tokens: Ids, width: int) -> Bytes:
        """[R, width]: the first bytes of each token."""
        at = self.starts[tokens, None] + np.arange(width)
        inside = at < self.ends[tokens, None]
        return np.where(inside, self._bytes[np.where(inside, at, 0)], _NOTHING)

    def tails(self, before: Bytes, tokens: Ids) -> Bytes:
        """[R, W]: the last bytes after each token. before: [R, W]."""
        width = before.shape[1]
        at = self.ends[tokens, None] - width + np.arange(width)
        inside = at >= self.starts[tokens, None]
        moved = np.arange(width) + (self.ends - self.starts)[tokens, None]
        older = np.take_along_axis(before, np.minimum(moved, width - 1), 1)
        return np.where(inside, self._bytes[np.where(inside, at, 0)], older)


class Breakers:
    """One set of breaker strings over one vocabulary."""

    def __init__(self, texts: Sequence[str], pieces: Pieces | None, vocab: int) -> None:
        self._breakers = [text.encode() for text in texts]
        self._pieces = pieces
        self._alone = np.zeros(vocab, bool)  # [V]: the token itself contains a breaker
        if pieces is not None:
            for breaker in self._breakers:
                at = _places(breaker, pieces.text)
                tokens = np.searchsorted(pieces.starts, at, "right") - 1
                self._alone[tokens[at + len(breaker) <= pieces.ends[tokens]]] = True
        self._long = [np.frombuffer(breaker, np.uint8) for breaker in self._breakers if len(breaker) > 1]
        self.reach = max((len(breaker) - 1 for breaker in self._long), default=0)

    def ends(self, ids: Sequence[int]) -> Flags:
        """[n]: whether a breaker ends within the token, itself part of it or not."""
        broken = np.zeros(len(ids), bool)
        if self._pieces is not None and len(ids):
            pieces = self._pieces.of(ids)
            text = b"".join(pieces)
            starts = np.cumsum([0, *(len(piece) for piece in pieces[:-1])])
            for breaker in self._breakers:
                last = _places(breaker, text) + len(breaker) - 1
                broken[np.searchsorted(starts, last, "right") - 1] = True
        return broken

    def tail(self, ids: Sequence[int]) -> Bytes:
        """[TAIL]: the last bytes of a text."""
        last = b"" if self._pieces is None else b"".join(self._pieces.of(ids[-TAIL * 4 :]))[-TAIL:]
        return np.array([_NOTHING] * (TAIL - len(last)) + list(last), np.int16)

    def follow(self, tails: Bytes, tokens: Ids) -> tuple[Flags, Bytes]:
        """(whether a breaker ends within the token [R], the new tails). tails: [R, TAIL], tokens: [R]."""
        broken = self._alone[tokens]
        if self._pieces is None or not self.reach:
            return broken, tails
        reach = self.reach
        joined = np.concatenate([tails[:, -reach:], self._pieces.heads(tokens, reach)], 1)
        for breaker in self._long:
            size = len(breaker)
            windows = np.lib.stride_tricks.sliding_window_view(joined, size, 1)[:, reach - size + 1 : reach]
            broken = broken | (windows == breaker).all(2).any(1)
        return broken, self._pieces.tails(tails, tokens)


def _places(needle: bytes, text: bytes) -> Ids:
    """Where it begins, overlapping places included."""
    pattern = re.compile(b"(?=" + re.escape(needle) + b")")
    return np.array([match.start() for match in pattern.finditer(text)], np.int64)
