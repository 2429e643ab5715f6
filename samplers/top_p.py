"""Top-p (nucleus): the shortest prefix of tokens, most probable first, that holds mass p; the crossing token and
everything tied with it are kept (Holtzman et al., arXiv 1904.09751)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samplers.contract import Param, Rows, State
from samplers.registry import STAGES
from samplers.rows import descending, keep_from, weights_below
from samplers.stage import BaseStage


@STAGES.register
class TopP(BaseStage):
    name = "top_p"
    order = 12
    params = (Param("top_p", float, 1.0, low=0.0, high=1.0, low_open=True, default=0.9),)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        ordered = descending(logits)
        mass = weights_below(ordered[:, :1], ordered).cumsum(1, dtype=torch.float64)
        wanted = params["top_p"].double().unsqueeze(1) * mass[:, -1:]
        crossing = (mass < wanted).sum(1, keepdim=True).clamp(max=logits.shape[1] - 1)
        threshold = ordered.gather(1, crossing)
        return keep_from(logits, threshold)
