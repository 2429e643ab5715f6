"""The samples of one prompt as they finish, put in index order, read, and looked at until they are enough."""

from __future__ import annotations

from collections.abc import Sequence

from server.votes.endings import Ending
from voting.contract import Sample, VotingRule
from voting.poll import Reading
from voting.stopping.in_order import InOrder


class BallotBox:
    """`samples` are those whose predecessors have all finished: a prefix of what one request for all would draw."""

    def __init__(self, rule: VotingRule, reading: Reading, options: bool, endings: Sequence[Ending]) -> None:
        """options: the prompt lists some."""
        self.samples: list[Sample] = []
        self.closed = False
        self.flags: tuple[str, ...] = ()  # what has closed it
        self._rule = rule
        self._reading = reading
        self._options = options
        self._endings = endings
        self._in_order: InOrder[Sample] = InOrder()
        self._looked = 0
        self._normal: dict[str, str] = {}  # answers, so that looking at every prefix normalises each of them once

    @property
    def watched(self) -> bool:
        """Something looks at every sample: `put` compares answers."""
        return bool(self._endings)

    def put(self, samples: Sequence[Sample]) -> bool:
        """Whether the box is closed now: a sample has been looked at that is enough, and those behind it are no
        samples of this vote. May take a while: it reads answers, and with math-verify waits for others."""
        return self.take([one for sample in samples for one in self._in_order.finish(sample.index, sample)])

    def take(self, samples: Sequence[Sample]) -> bool:
        """As `put`, of samples that are in order, whatever their indices."""
        self.samples += [self._reading.read(one, self._rule, self._options) for one in samples]
        while self._endings and self._looked < len(self.samples):
            self._looked += 1
            seen = self.samples[: self._looked]
            clusters = self._reading.partition(seen, self._normal).clusters
            closing = [ending for ending in self._endings if ending.look(seen, clusters)]
            if closing:
                self.samples, self.closed = seen, True
                self.flags = tuple(ending.flag for ending in closing if ending.flag is not None)
                break
        return self.closed
