"""Top-k: keep the k largest logits and everything tied with the last of them (Fan et al., arXiv 1805.04833)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from samplers.contract import Param, Rows, State
from samplers.registry import STAGES
from samplers.rows import keep_from
from samplers.stage import BaseStage


@STAGES.register
class TopK(BaseStage):
    name = "top_k"
    order = 11
    params = (Param("top_k", int, 0, low=1, high=2**31 - 1, also=(0, -1), default=40),)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        vocab = logits.shape[1]
        k = params["top_k"].clamp(max=vocab)
        largest = logits.topk(int(k.max()), 1).values
        threshold = largest.gather(1, (k - 1).unsqueeze(1))
        return keep_from(logits, threshold)
