"""Whether thinking about drafts is worth its time, from what steps with and without it have given.

The controller predicts what drafts cost and bring; nobody predicts what it costs everybody to find out. So whole steps
are compared: in some steps in a row drafts are thought of or not, whichever has given more tokens per second at such a
load, and now and then it is the other way. Knows nothing about tokens or tensors. For the engine thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FEW = 4  # requests; with fewer drafts are always thought of: what pays for one does not for another, and time is idle
BLOCK = 16  # steps in a row that are the same
EVERY = 16  # of so many blocks one goes the way that has given less
_DECAY = 0.99  # per step: what was long ago counts less
_LONGEST = 4.0  # a step that takes so many times what is usual says nothing: something else held it up


@dataclass
class _Way:
    """Steps with thinking, or without."""

    tokens: float = 0.0
    seconds: float = 0.0
    steps: float = 0.0  # all three: the older the less they count

    def add(self, tokens: int, seconds: float) -> None:
        if self.steps >= BLOCK / 2 and seconds > _LONGEST * self.seconds / self.steps:
            return
        self.tokens = _DECAY * self.tokens + tokens
        self.seconds = _DECAY * self.seconds + seconds
        self.steps = _DECAY * self.steps + 1

    @property
    def rate(self) -> float:
        """Tokens per second; infinity before there was any."""
        return self.tokens / self.seconds if self.seconds else float("inf")


@dataclass
class _Load:
    """Steps of about so many requests."""

    ways: dict[bool, _Way] = field(default_factory=lambda: {True: _Way(), False: _Way()})
    thinking: bool = True
    left: int = BLOCK  # steps of the block
    blocks: int = 0

    def next_block(self) -> None:
        self.left, self.blocks = BLOCK, self.blocks + 1
        better = self.ways[True].rate >= self.ways[False].rate
        self.thinking = better != (self.blocks % EVERY == 0)


class Worth:
    """Of one engine."""

    def __init__(self) -> None:
        self._loads: dict[int, _Load] = {}  # by the binary digits of the number of requests

    def thinks(self, requests: int) -> bool:
        """Whether drafts are thought of in this step."""
        if requests < FEW:
            return True
        load = self._load(requests)
        if load.left == 0:
            load.next_block()
        load.left -= 1
        return load.thinking

    def observe(self, requests: int, thought: bool, tokens: int, seconds: float) -> None:
        """A whole step, planning and delivery included. tokens: that went into outputs."""
        if requests >= FEW:
            self._load(requests).ways[thought].add(tokens, seconds)

    def _load(self, requests: int) -> _Load:
        return self._loads.setdefault(requests.bit_length(), _Load())
