"""Whether thinking about drafts is worth its time, from what steps with and without it have given.

The controller predicts what drafts cost and bring; nobody predicts what it costs everybody to find out. So whole steps
are compared: in some steps in a row drafts are thought of or not, whichever has given more tokens per second at such a
load, and now and then it is the other way. Only neighbours are compared, for what else the machine has to do may change
any time. Knows nothing about tokens or tensors. For the engine thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FEW = 4  # requests; with fewer drafts are always thought of: what pays for one does not for another, and time is idle
BLOCK = 16  # steps in a row that are the same
EVERY = 16  # of so many blocks one goes the way that has given less
_SAMPLES = 3.0  # comparisons before that is done so rarely
_DECAY = 0.8  # per comparison: what was long ago counts less
_MOST = 0.5  # of a comparison, either way: a block that something else has held up is not to outweigh many


@dataclass
class _Load:
    """Steps of about so many requests."""

    thinking: bool = True
    left: int = BLOCK  # steps of the block
    tokens: int = 0  # of the block so far
    seconds: float = 0.0
    before: float = 0.0  # tokens per second of the block before; 0: there was none, or it was like this one
    alike: int = 0  # blocks in a row that were the same
    advantage: float = 0.0  # of thinking: sum of ln of its tokens per second relative to those without
    samples: float = 0.0  # in that sum; in both, the older the less they count

    def next_block(self) -> None:
        rate = self.tokens / self.seconds if self.tokens else 0.0
        if rate and self.before:
            gained = min(max(math.log(rate / self.before), -_MOST), _MOST)
            self.advantage = _DECAY * self.advantage + (gained if self.thinking else -gained)
            self.samples = _DECAY * self.samples + 1
        self.alike += 1
        better = self.advantage >= 0.0
        rested = self.thinking == better and self.alike < (EVERY - 1 if self.samples > _SAMPLES else 1)
        self.before = 0.0 if rested else rate
        if not rested:
            self.thinking, self.alike = not self.thinking, 0
        self.left, self.tokens, self.seconds = BLOCK, 0, 0.0


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
        if requests >= FEW and (load := self._load(requests)).thinking == thought:
            load.tokens += tokens
            load.seconds += seconds

    def _load(self, requests: int) -> _Load:
        return self._loads.setdefault(requests.bit_length(), _Load())
