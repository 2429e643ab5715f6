"""Quadratic smoothing: flattens the logits near the top and steepens the fall behind it. No paper; the formula of the
servers that have it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samplers.contract import Param, Rows, State
from samplers.registry import STAGES
from samplers.stage import BaseStage

_LARGEST = torch.finfo(torch.float32).max
_DEEPEST = -1e30  # tokens that fall further stay where they were: nothing is drawn there, and -inf would be a mask


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
        below = (peak - logits).clamp(max=_LARGEST)
        # as a product of numbers none of which is infinite: it may overflow, but never to something that is no number
        fall = factor * below * below * ((3 - curve) / 2 + (curve - 1) / 2 * below)
        bent = torch.maximum(peak - fall, logits.clamp(max=_DEEPEST))
        return torch.where(logits > -torch.inf, bent, logits)
