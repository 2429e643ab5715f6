"""Mirostat v2: cuts off tokens more surprising than mu, which follows the surprise of what is drawn (Basu et al., arXiv
2007.14966). Surprise is -log2 p, in bits, of the row that enters the stage."""

from __future__ import annotations

import math
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

_BITS = math.log(2)


@STAGES.register
class Mirostat(FeedbackStage):
    """mu starts at 2 tau; after each token mu -= eta (surprise - tau). The most probable token is always kept."""

    name = "mirostat"
    order = 18
    params = (
        Param("mirostat_tau", float, 0.0, low=0.0, high=100.0, low_open=True, also=(0.0,), default=5.0),
        Param("mirostat_eta", float, 0.1, low=0.0, high=1.0, low_open=True),
        Param("mirostat_surprise", str, "original", choices=("original", "renormalised")),
    )

    def is_neutral(self, values: Mapping[str, Any]) -> bool:
        return values["mirostat_tau"] == 0

    def new_state(self, shape: Shape) -> State:
        return _Surprises(shape)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, _Surprises)
        slots = host(rows.slots)
        total = logits.logsumexp(1)
        limit = torch.from_numpy((state.level[slots] * _BITS).astype(np.float32)).to(logits.device)
        threshold = torch.minimum(total - limit, logits.amax(1))
        out = logits.masked_fill(logits < threshold.unsqueeze(1), -torch.inf)
        renormalised = params["mirostat_surprise"] == 1
        measure = torch.where(renormalised, out.logsumexp(1), total) if bool(renormalised.any()) else total
        state.drawn.note(slots, lambda at, drawn: logits[at, drawn] - measure[at])
        return out


class _Surprises(Feedback):
    """`level` is mu."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self._tau, self._eta = np.zeros(shape.slots), np.zeros(shape.slots)

    def admit(self, slot: int, admission: Admission) -> None:
        self._tau[slot], self._eta[slot] = admission.values["mirostat_tau"], admission.values["mirostat_eta"]
        self.level[slot] = 2 * self._tau[slot]
        self.drawn.admit(slot)

    def moved(self, slots: Ids, logprobs: Scores) -> Scores:
        moved = self.level[slots] - self._eta[slots] * (-logprobs / _BITS - self._tau[slots])
        return np.where(np.isfinite(logprobs), moved, self.level[slots])  # no mu comes back from infinite surprise

    def fork(self, parent: int, child: int) -> None:
        super().fork(parent, child)
        self._tau[child], self._eta[child] = self._tau[parent], self._eta[parent]
