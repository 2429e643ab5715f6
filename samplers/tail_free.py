"""Tail-free sampling: cut where the sorted probabilities stop bending. No paper; the rule of the servers that have
it (second differences, normalised and summed from the top)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samplers.contract import Param, Rows, State
from samplers.registry import STAGES
from samplers.rows import descending, keep_from
from samplers.stage import BaseStage


@STAGES.register
class TailFree(BaseStage):
    """Fewer than three tokens, or probabilities on a straight line, are left as they are."""

    name = "tail_free"
    order = 13.2
    params = (Param("tfs", float, 1.0, low=0.0, high=1.0, low_open=True, default=0.95),)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        ordered = descending(logits)
        finite = (ordered > -torch.inf).sum(1, keepdim=True)
        p = ordered.double().softmax(1)
        bends = p.diff(n=2, dim=1).abs()
        # differences that reach into the masked tail are none
        inside = torch.arange(bends.shape[1], device=logits.device) < finite - 2
        bends = bends.masked_fill(~inside, 0.0)
        total = bends.sum(1, keepdim=True)
        wanted = params["tfs"].double().unsqueeze(1) * total
        crossing = (bends.cumsum(1) < wanted).sum(1, keepdim=True)  # shortest prefix: crossing + 1 differences
        last = torch.minimum(crossing + 1, finite - 1).clamp(min=0)  # and the token that differences lose
        threshold = ordered.gather(1, last)
        untouched = (finite < 3) | (total == 0)
        return keep_from(logits, threshold.masked_fill(untouched, -torch.inf))
