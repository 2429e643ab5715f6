"""Tail-free sampling: cut where the sorted probabilities stop bending. No paper; the rule of the servers that have
it (second differences, normalised and summed from the top)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samplers.contract import Param, Rows, State
from samplers.registry import STAGES
from samplers.rows import descending, keep_from, weights_below
from samplers.stage import BaseStage


@STAGES.register
class TailFree(BaseStage):
    """Fewer than three tokens, or probabilities on a straight line, are left as they are."""

    name = "tail_free"
    order = 13.2
    params = (Param("tfs", float, 1.0, low=0.0, high=1.0, low_open=True, default=0.95),)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        if logits.shape[1] < 3:
            return logits
        ordered = descending(logits)
        weights = weights_below(ordered[:, :1], ordered)
        bends = weights[:, :-2] + weights[:, 2:]
        bends.sub_(weights[:, 1:-1], alpha=2).abs_()
        summed = bends.cumsum(1, dtype=torch.float64)
        finite = (logits > -torch.inf).sum(1, keepdim=True)
        total = summed.gather(1, (finite - 3).clamp(min=0))  # differences that reach into the masked tail are none
        wanted = params["tfs"].double().unsqueeze(1) * total
        crossing = torch.searchsorted(summed, wanted)  # the shortest prefix holds crossing + 1 differences
        last = torch.minimum(crossing + 1, (finite - 1).clamp(min=0))  # and the token that differences lose
        untouched = (finite < 3) | (total == 0)
        return keep_from(logits, ordered.gather(1, last).masked_fill(untouched, -torch.inf))
