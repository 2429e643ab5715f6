"""What stretches of text go on with, by searching all of it: the slow reference of everything that counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spec_decode.drafters.growth import Continuation, Match

Place = tuple[int, ...]  # the last tokens


class Searched:
    """Several texts; `current` is continued, and belongs to them if it is `among` them."""

    def __init__(self, texts: Sequence[Sequence[int]], current: Sequence[int], depth: int, among: bool = True) -> None:
        self._texts = [*texts, current] if among else list(texts)
        self._current, self._depth = list(current), depth

    def matches(self) -> Iterator[Match[Place]]:
        for length in range(len(self._current), 0, -1):
            if self._followed(tuple(self._current[-length:])):
                yield Match(length, tuple(self._current[-min(length, self._depth - 1) :]))

    def continuations(self, place: Place) -> list[Continuation[Place]]:
        behind = self._followed(place)
        keep = self._depth - 1
        return [Continuation(token, behind.count(token), (*place, token)[-keep:]) for token in set(behind)]

    def _followed(self, place: Place) -> list[int]:
        """Every token that stands behind this somewhere."""
        size = len(place)
        return [
            text[at]
            for text in self._texts
            for at in range(size, len(text))
            if tuple(text[at - size : at]) == place
        ]  # fmt: skip
