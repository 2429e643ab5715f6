"""What samplers have in common that steer by one number, moved by the probability of every drawn token."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from samplers.contract import Shape
from samplers.drawn import DrawnScores, Scores
from samplers.histories import Ids, host
from samplers.registry import STAGES
from samplers.stage import BaseStage


class FeedbackStage(BaseStage):
    """Follows the law it steers, so nothing else may cut or bend the row after temperature."""

    resumable = False
    excludes_from: ClassVar[float] = 10  # the order from which on it shares the row with nobody

    @property
    def excludes(self) -> frozenset[str]:  # type: ignore[override]  # stages of other packages are among them
        return frozenset(stage.name for stage in STAGES if self.excludes_from <= stage.order < 19) - {self.name}


class Feedback:
    """level [slots] fp64."""

    def __init__(self, shape: Shape) -> None:
        self.level = np.zeros(shape.slots)
        self.drawn = DrawnScores(shape.slots)

    def moved(self, slots: Ids, logprobs: Scores) -> Scores:
        """The new levels. slots: [R]; logprobs: [R] ln p of the drawn tokens."""
        raise NotImplementedError

    def accept(self, slots: Tensor, tokens: Tensor) -> None:
        mine = host(slots)
        logprobs = self.drawn.take(mine, tokens)
        known = ~np.isnan(logprobs)  # the level stays where nobody can say how probable the token was
        self.level[mine[known]] = self.moved(mine[known], logprobs[known])

    def snapshot(self, slot: int) -> Any:
        return self.level[slot], self.drawn.snapshot(slot)

    def restore(self, slot: int, snapshot: Any) -> None:
        self.level[slot], drawn = snapshot
        self.drawn.restore(slot, drawn)

    def fork(self, parent: int, child: int) -> None:
        self.level[child] = self.level[parent]
        self.drawn.fork(parent, child)

    def free(self, slot: int) -> None:
        self.drawn.free(slot)
