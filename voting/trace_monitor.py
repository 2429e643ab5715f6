"""Follows one trace token by token and says when its confidence has fallen too low to go on (DeepConf, online).

A token costs O(1). Knows nothing about the engine; whoever aborts the trace records it, and nobody asks again.
"""

from __future__ import annotations

import math

_RENEW_EVERY = 4096  # tokens, after which the running sum is added up anew


class TraceMonitor:
    """Says stop at the first full window whose mean confidence is below the threshold, which is -inf for traces of the
    warm-up."""

    def __init__(self, window: int, threshold: float = -math.inf) -> None:
        self._threshold = threshold
        self._ring = [0.0] * window  # confidences of the last tokens, the oldest at _seen % window
        self._sum = 0.0
        self._seen = 0
        self._lowest = math.inf
        self.aborted = False

    @property
    def lowest(self) -> float:
        """The least mean of a full window, or of all tokens as long as there is none. Raises ValueError before the
        first token."""
        if not self._seen:
            raise ValueError("a trace without tokens has no confidence")
        return self._sum / self._seen if self._seen < len(self._ring) else self._lowest

    def feed(self, confidence: float) -> bool:
        """True: abort now. The next token is not to be fed then."""
        if self.aborted:
            raise ValueError("the trace has been aborted")
        place = self._seen % len(self._ring)
        self._sum += confidence - self._ring[place]
        self._ring[place] = confidence
        self._seen += 1
        if self._seen % _RENEW_EVERY == 0:
            self._sum = math.fsum(self._ring)
        if self._seen >= len(self._ring):
            mean = self._sum / len(self._ring)
            self._lowest = min(self._lowest, mean)
            self.aborted = mean < self._threshold
        return self.aborted
