"""Temperature: logits divided by T. Below 1e-5 a chain is greedy and this stage does not run.

With a range, T follows the row's entropy between T - range and T + range (dynamic temperature, the rule of llama.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from samplers.contract import Param, Rows, SamplerError, State
from samplers.model_facts import ModelFacts
from samplers.registry import STAGES
from samplers.rows import log_total_and_entropy
from samplers.stage import BaseStage

GREEDY_BELOW = 1e-5


@STAGES.register
class Temperature(BaseStage):
    name = "temperature"
    order = 9
    params = (
        Param("temperature", float, 1.0, low=0.0, high=100.0),
        Param("dynatemp_range", float, 0.0, low=0.0, high=100.0),
        Param("dynatemp_exponent", float, 1.0, low=0.0, high=10.0, low_open=True),
    )

    def is_neutral(self, values: Mapping[str, Any]) -> bool:
        return values["temperature"] == 1.0 and values["dynatemp_range"] == 0.0

    def check(self, values: Mapping[str, Any], model: ModelFacts) -> None:
        if values["dynatemp_range"] > values["temperature"]:
            raise SamplerError("'dynatemp_range' must not be larger than 'temperature'", "dynatemp_range")

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        temperature = params["temperature"]
        if bool((params["dynatemp_range"] > 0).any()):
            temperature = _dynamic(logits, temperature, params["dynatemp_range"], params["dynatemp_exponent"])
        return logits / temperature.unsqueeze(1)


def _dynamic(logits: Tensor, middle: Tensor, reach: Tensor, exponent: Tensor) -> Tensor:
    """Each row's temperature [R]: low where the model is sure. A row of one token keeps its logits."""
    count = (logits > -torch.inf).sum(1)
    share = log_total_and_entropy(logits)[1].squeeze(1).float() / count.clamp(min=2).log()
    low, high = middle - reach, middle + reach
    moving = (low + (high - low) * share.clamp(0, 1) ** exponent).clamp(min=GREEDY_BELOW)
    return torch.where(reach > 0, torch.where(count > 1, moving, 1.0), middle)
