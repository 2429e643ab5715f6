"""Locally typical sampling: the tokens whose surprisal is nearest the row's entropy, until they hold mass tau
(Meister et al., arXiv 2202.00666)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samplers.contract import Param, Rows, State
from samplers.registry import STAGES
from samplers.rows import ascending_order, descending, log_total_and_entropy, weights_below
from samplers.stage import BaseStage


@STAGES.register
class Typical(BaseStage):
    """The crossing token and everything tied with it are kept. May remove the most probable token."""

    name = "typical"
    order = 14
    params = (Param("typical_p", float, 1.0, low=0.0, high=1.0, low_open=True, default=0.9),)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        total, entropy = log_total_and_entropy(logits)
        expected = total - entropy  # the logit of a token whose surprisal is the entropy
        ordered = descending(logits)
        distances = (expected - ordered).abs_()
        nearest = ascending_order(distances)  # of two runs, which are merged
        mass = weights_below(ordered[:, :1], ordered).gather(1, nearest).cumsum(1, dtype=torch.float64)
        wanted = params["typical_p"].double().unsqueeze(1) * mass[:, -1:]
        at = torch.searchsorted(mass, wanted).clamp_(max=mass.shape[1] - 1)  # an emptied row only has to get through
        crossing = distances.gather(1, nearest.gather(1, at))
        # distances from what is not finite are NaN and mask nothing: it has to stay where it is seen
        return logits.masked_fill((expected - logits).abs_() > crossing, -torch.inf)
