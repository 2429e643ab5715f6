"""Quadratic smoothing: flattens the logits near the top and steepens the fall behind it. No paper; the formula of the
servers that have it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samplers.contract import Param, Rows, State
from samplers.registry import STAGES
from samplers.stage import BaseStage


@STAGES.register
class Smoothing(BaseStage):
    """With d the distance to the largest logit: -f ((3 - c) / 2 d^2 + (c - 1) / 2 d^3) below it; removes nothing."""

    name = "smoothing"
    order = 16.1
    params = (
        Param("smoothing_factor", float, 0.0, low=0.0, high=1e6, default=0.3),
        Param("smoothing_curve", float, 1.0, low=1.0, high=1e6),
    )

    def is_neutral(self, values: Mapping[str, object]) -> bool:
        return values["smoothing_factor"] == 0.0

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        factor, curve = params["smoothing_factor"].unsqueeze(1), params["smoothing_curve"].unsqueeze(1)
        peak = logits.amax(1, keepdim=True)
        finite = logits > -torch.inf
        below = (peak - logits).masked_fill(~finite, 0.0)
        fall = factor * ((3 - curve) / 2 * below**2 + (curve - 1) / 2 * below**3)
        # the cubic can overtake fp32 far below the peak, where nothing is ever drawn
        return torch.where(finite, peak - fall.clamp(max=1e30), logits)
