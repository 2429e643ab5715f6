"""Finds the first stop string in a stream of text and holds back whatever might become one.

Knows nothing about tokens. The result does not depend on how the text was cut into pieces.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class StopMatcher:
    """One choice's stop strings. The match that ends first wins, of those that end together the longest."""

    # The held text is the longest suffix of everything seen that is a proper prefix of a stop string. A later match
    # therefore starts inside it, and its start only ever moves forward.
    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = sorted(set(stops))
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str, armed: bool = True) -> str:
        """The text that is certain to be output. Unarmed, matches that end in this piece do not count."""
        if not self._stops or self.matched is not None:
            return "" if self.matched is not None else text
        seen = len(self._held)
        buffer = self._held + text
        if armed and (match := self._first_match(buffer, seen)) is not None:
            start, self.matched = match
            self._held = ""
            return buffer[: start + len(self.matched) if self._include else start]
        hold = next((at for at in range(len(buffer)) if self._begins_stop(buffer[at:])), len(buffer))
        self._held = buffer[hold:]
        return buffer[:hold]

    def flush(self) -> str:
        """The held text: the stream ended without completing a stop string."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, buffer: str, seen: int) -> tuple[int, str] | None:
        """Start and text of the match that ends first, among those that end after `seen`."""
        best: tuple[int, int, str] | None = None  # end, start, stop
        for stop in self._stops:
            start = buffer.find(stop, max(0, seen - len(stop) + 1))
            if start >= 0:
                found = (start + len(stop), start, stop)
                best = found if best is None else min(best, found)
        return None if best is None else best[1:]

    def _begins_stop(self, text: str) -> bool:
        """True when some stop string starts with `text` and goes on after it."""
        at = bisect_left(self._stops, text)
        if at < len(self._stops) and self._stops[at] == text:
            at += 1
        return at < len(self._stops) and self._stops[at].startswith(text)
