"""Epsilon and eta: absolute probability thresholds, the second one lower where the model is unsure (Hewitt et al.,
Truncation sampling as language model desmoothing, arXiv 2210.15191)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samplers.contract import Param, Rows, State
from samplers.registry import STAGES
from samplers.rows import keep_from, log_total_and_entropy
from samplers.stage import BaseStage


@STAGES.register
class Epsilon(BaseStage):
    """Keeps p >= epsilon, and the most probable tokens in any case."""

    name = "epsilon"
    order = 15
    params = (Param("epsilon_cutoff", float, 0.0, low=0.0, high=1.0, high_open=True, default=6e-4),)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        threshold = params["epsilon_cutoff"].log().unsqueeze(1) + logits.logsumexp(1, keepdim=True)
        return keep_from(logits, torch.minimum(threshold, logits.amax(1, keepdim=True)))


@STAGES.register
class Eta(BaseStage):
    """Keeps p >= min(epsilon, sqrt(epsilon) exp(-entropy)); never empties a row."""

    name = "eta"
    order = 16
    params = (Param("eta_cutoff", float, 0.0, low=0.0, high=1.0, high_open=True, default=9e-4),)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        total, entropy = log_total_and_entropy(logits)
        cutoff = params["eta_cutoff"].double().log().unsqueeze(1)
        threshold = (torch.minimum(cutoff, cutoff / 2 - entropy) + total).float()
        return keep_from(logits, torch.minimum(threshold, logits.amax(1, keepdim=True)))
