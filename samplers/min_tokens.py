"""Minimum length: what would end a choice stays masked until enough tokens have been generated."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samplers.contract import Admission, Rows, Shape, State
from samplers.registry import STAGES
from samplers.stage import BaseStage, FixedState
from samplers.token_table import TokenTable


@STAGES.register
class MinTokens(BaseStage):
    """EOS and stop ids stay masked until `min_tokens` have been generated."""

    name = "min_tokens"
    order = 2.2
    in_greedy = True

    def new_state(self, shape: Shape) -> State:
        return _Endings(shape)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, _Endings)
        return state.table.add(logits, rows.slots, where=rows.positions < state.limits[rows.slots])


class _Endings(FixedState):
    """The ids that end a choice, and limits [slots] int64."""

    def __init__(self, shape: Shape) -> None:
        self.table = TokenTable(shape)
        self.limits = torch.zeros(shape.slots, dtype=torch.int64, device=shape.device)

    def admit(self, slot: int, admission: Admission) -> None:
        self.table.write(slot, dict.fromkeys(admission.ending_ids, -torch.inf))
        self.limits[slot] = admission.min_tokens

    def fork(self, parent: int, child: int) -> None:
        self.table.copy(parent, child)
        self.limits[child] = self.limits[parent]
