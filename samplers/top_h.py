"""Top-H: the most probable tokens while their entropy stays within a share of the row's (arXiv 2509.02510).

The rule is the one transformers has: terms -p ln p of the 100 most probable tokens, renormalised among themselves,
are summed from the top. The paper bounds the entropy of the kept tokens renormalised again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samplers.contract import Param, Rows, State
from samplers.registry import STAGES
from samplers.rows import keep_from
from samplers.stage import BaseStage

_CANDIDATES = 100


@STAGES.register
class TopH(BaseStage):
    """The most probable token is always kept, and so is everything tied with the last kept one."""

    name = "top_h"
    order = 13.3
    params = (Param("top_h", float, 1.0, low=0.0, high=1.0, low_open=True, default=0.4),)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        top = logits.topk(min(_CANDIDATES, logits.shape[1]), 1).values
        terms = torch.special.entr(top.double().softmax(1))
        bound = params["top_h"].double().unsqueeze(1) * terms.sum(1, keepdim=True)
        kept = (terms.cumsum(1) <= bound).sum(1, keepdim=True).clamp(min=1)
        return keep_from(logits, top.gather(1, kept - 1))
