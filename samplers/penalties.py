"""Repetition, frequency and presence penalties.

Repetition (CTRL, Keskar et al., arXiv 1909.05858) counts the prompt as well unless told otherwise; frequency and
presence count generated tokens only, as OpenAI defines them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from samplers.contract import Param, Rows, Shape, State
from samplers.counts import OutputCounts, Seen
from samplers.registry import STAGES
from samplers.stage import BaseStage

# A stronger penalty than any logit can show. Smaller numbers would vanish in fp32, or make logits that a low
# temperature divides beyond it.
_STRONGEST = 1e-28


@STAGES.register
class RepetitionPenalty(BaseStage):
    """Positive logits of seen tokens are divided by the penalty, others multiplied with it."""

    name = "repetition_penalty"
    order = 4
    params = (
        Param("repetition_penalty", float, 1.0, low=0.0, high=10.0, low_open=True, default=1.1),
        Param("repetition_scope", str, "all", choices=("all", "output")),
        Param("repetition_last_n", int, 0, low=0, high=2**31 - 1),  # 0: all tokens of the scope
    )
    in_greedy = True

    def is_neutral(self, values: Mapping[str, Any]) -> bool:
        return values["repetition_penalty"] == 1

    def new_state(self, shape: Shape) -> State:
        return Seen(shape)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, Seen)
        penalty = params["repetition_penalty"].clamp(min=_STRONGEST).unsqueeze(1)
        # one of the two terms is zero; on a CPU a choice by sign would take ten times as long
        punished = logits.clamp(min=0).div_(penalty).add_(logits.clamp(max=0).mul_(penalty))
        return torch.where(state.table.index_select(0, rows.slots), punished, logits)


@STAGES.register
class FrequencyPenalty(BaseStage):
    """Subtracts the penalty once per earlier occurrence."""

    name = "frequency_penalty"
    order = 5
    params = (Param("frequency_penalty", float, 0.0, low=-2.0, high=2.0, default=0.5),)
    in_greedy = True

    def new_state(self, shape: Shape) -> State:
        return shape.shared(OutputCounts)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, OutputCounts)
        charge = params["frequency_penalty"].unsqueeze(1) * state.table.index_select(0, rows.slots)
        return torch.sub(logits, charge, out=charge)


@STAGES.register
class PresencePenalty(BaseStage):
    """Subtracts the penalty once from every token that has occurred."""

    name = "presence_penalty"
    order = 5.1
    params = (Param("presence_penalty", float, 0.0, low=-2.0, high=2.0, default=0.5),)
    in_greedy = True

    def new_state(self, shape: Shape) -> State:
        return shape.shared(OutputCounts)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, OutputCounts)
        charge = params["presence_penalty"].unsqueeze(1) * state.table.index_select(0, rows.slots).clamp_(max=1)
        return torch.sub(logits, charge, out=charge)
