"""Top-n-sigma: keep logits within n standard deviations of the largest (Tang et al., arXiv 2411.07641)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samplers.contract import Param, Rows, State
from samplers.registry import STAGES
from samplers.rows import keep_from
from samplers.stage import BaseStage


@STAGES.register
class TopNSigma(BaseStage):
    """The population deviation over the tokens that are not masked: the kept set does not depend on temperature."""

    name = "top_n_sigma"
    order = 10
    params = (Param("top_n_sigma", float, 0.0, low=0.0, default=1.0),)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        lowest, peak = logits.aminmax(dim=1, keepdim=True)
        masked = bool((lowest == -torch.inf).any())
        deviation = _deviation_of_finite(logits, peak) if masked else logits.std(1, correction=0, keepdim=True)
        return keep_from(logits, peak - params["top_n_sigma"].unsqueeze(1) * deviation)


def _deviation_of_finite(logits: Tensor, peak: Tensor) -> Tensor:
    """Population standard deviation of each row's finite entries. logits: [R, V]; peak: [R, 1] -> [R, 1]."""
    finite = logits > -torch.inf
    count = finite.sum(1, keepdim=True)
    below = (logits - peak).masked_fill_(~finite, 0.0)
    mean = below.sum(1, keepdim=True, dtype=torch.float64) / count
    squares = (below - mean.float()).square_().masked_fill_(~finite, 0.0)
    return (squares.sum(1, keepdim=True, dtype=torch.float64) / count).sqrt().float()
