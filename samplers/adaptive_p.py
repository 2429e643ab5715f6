"""Adaptive-p: prefers tokens whose probability is near a target, which it moves so that the drawn tokens' average
comes to the target (a sampler of llama.cpp; samplers.md 6.9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers.contract import Admission, Param, Rows, Shape, State
from samplers.drawn import Scores
from samplers.feedback import Feedback, FeedbackStage
from samplers.histories import Ids, host
from samplers.registry import STAGES

PEAK, SHARPNESS, WIDTH = 5.0, 10.0, 0.3


@STAGES.register
class AdaptiveP(FeedbackStage):
    """With a = clamp(2 target - average, 0, 1) and x = |p - a| / 0.3, logits become 5 - 10 x^2 / (1 + x).

    Unlike mirostat it may follow a truncation, against samplers.md 3: every token that is left gets a logit of its own
    size, and the many of a large vocabulary that have next to no probability would be drawn from most of the time.
    """

    name = "adaptive_p"
    order = 18.1
    excludes_from = 16  # what bends the row, and mirostat
    params = (
        Param("adaptive_p", float, 0.0, low=0.0, high=1.0, low_open=True, high_open=True, also=(0.0,), default=0.5),
        Param("adaptive_decay", float, 0.9, low=0.0, high=1.0, high_open=True),
    )

    def is_neutral(self, values: Mapping[str, Any]) -> bool:
        return values["adaptive_p"] == 0

    def new_state(self, shape: Shape) -> State:
        return _Averages(shape)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, _Averages)
        slots = host(rows.slots)
        p = logits.softmax(1)
        aim = torch.from_numpy(state.aims(slots).astype(np.float32)).to(logits.device)
        distance = (p - aim.unsqueeze(1)).abs_().div_(WIDTH)
        bent = PEAK - SHARPNESS * distance.square() / (1 + distance)
        state.drawn.note(slots, lambda at, drawn: p[at, drawn].log())
        return torch.where(logits == -torch.inf, logits, bent)


class _Averages(Feedback):
    """`level` is the average of the drawn tokens' probabilities: with decay d, avg <- d avg + (1 - d) p.

    The same as sums primed with target / (1 - d) over 1 / (1 - d), whose weight never changes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self._target, self._decay = np.zeros(shape.slots), np.zeros(shape.slots)

    def admit(self, slot: int, admission: Admission) -> None:
        self._target[slot] = admission.values["adaptive_p"]
        self._decay[slot] = admission.values["adaptive_decay"]
        self.level[slot] = self._target[slot]
        self.drawn.admit(slot)

    def aims(self, slots: Ids) -> Scores:
        """[R] the probability that is preferred now."""
        return np.clip(2 * self._target[slots] - self.level[slots], 0, 1)

    def moved(self, slots: Ids, logprobs: Scores) -> Scores:
        decay = self._decay[slots]
        return decay * self.level[slots] + (1 - decay) * np.exp(logprobs)

    def fork(self, parent: int, child: int) -> None:
        super().fork(parent, child)
        self._target[child], self._decay[child] = self._target[parent], self._decay[parent]
