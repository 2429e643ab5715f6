"""Top-a: keep p >= a (max p)^2. No paper; the rule of the servers that have it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samplers.contract import Param, Rows, State
from samplers.registry import STAGES
from samplers.rows import keep_from
from samplers.stage import BaseStage


@STAGES.register
class TopA(BaseStage):
    name = "top_a"
    order = 13.1
    params = (Param("top_a", float, 0.0, low=0.0, high=1.0, default=0.2),)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        peak = logits.amax(1, keepdim=True)
        # ln (a p_max^2) + ln Z; p_max <= 1, so only rounding could lift it above the peak
        threshold = params["top_a"].log().unsqueeze(1) + 2 * peak - logits.logsumexp(1, keepdim=True)
        return keep_from(logits, torch.minimum(threshold, peak))
