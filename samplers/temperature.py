"""Temperature: logits divided by T. Below 1e-5 a chain is greedy and this stage does not run."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from samplers.contract import Param, Rows, State
from samplers.registry import STAGES
from samplers.stage import BaseStage

GREEDY_BELOW = 1e-5


@STAGES.register
class Temperature(BaseStage):
    name = "temperature"
    order = 9
    params = (Param("temperature", float, 1.0, low=0.0, high=100.0),)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        return logits / params["temperature"].unsqueeze(1)
