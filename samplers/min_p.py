"""Min-p: keep tokens at least min_p times as probable as the most probable one (Nguyen et al., arXiv 2407.01082)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from samplers.contract import Param, Rows, State
from samplers.registry import STAGES
from samplers.rows import keep_from
from samplers.stage import BaseStage


@STAGES.register
class MinP(BaseStage):
    name = "min_p"
    order = 13
    params = (Param("min_p", float, 0.0, low=0.0, high=1.0, default=0.05),)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        # in logits: no softmax and no sort is needed
        threshold = logits.amax(1, keepdim=True) + params["min_p"].log().unsqueeze(1)
        return keep_from(logits, threshold)
