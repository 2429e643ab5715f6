"""Logit bias: a constant added to chosen logits before penalties and temperature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from samplers.contract import Admission, Rows, SamplerError, Shape, State
from samplers.registry import STAGES
from samplers.stage import BaseStage, FixedState
from samplers.token_table import TokenTable

MAX_BIASES = 1024


@STAGES.register
class LogitBias(BaseStage):
    """Adds a constant to chosen logits; a masked token stays masked."""

    name = "logit_bias"
    order = 3
    structured = ("logit_bias",)
    in_greedy = True

    def parse(self, field: str, value: Any, path: str, vocab: int) -> dict[str, float]:
        if not isinstance(value, Mapping):
            raise SamplerError(f"'{path}' must map token ids to numbers", path)
        if len(value) > MAX_BIASES:
            raise SamplerError(f"'{path}' has more than {MAX_BIASES} entries", path)
        parsed: dict[str, float] = {}
        for key, bias in value.items():
            where = f"{path}.{key}"
            text = str(key)
            if not text.isascii() or not text.isdigit() or len(text) > 12 or int(text) >= vocab:
                raise SamplerError(f"'{where}': keys must be token ids in [0, {vocab})", where)
            if isinstance(bias, bool) or not isinstance(bias, (int, float)) or bias != bias:
                raise SamplerError(f"'{where}' must be a number", where)
            if not -100 <= bias <= 100:
                raise SamplerError(f"'{where}' must be in [-100, 100], got {bias}", where)
            parsed[str(int(text))] = float(bias)
        return parsed

    def new_state(self, shape: Shape) -> State:
        return _Biases(shape)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, _Biases)
        return state.table.add(logits, rows.slots)


class _Biases(FixedState):
    def __init__(self, shape: Shape) -> None:
        self.table = TokenTable(shape)

    def admit(self, slot: int, admission: Admission) -> None:
        self.table.write(slot, {int(token): bias for token, bias in admission.values["logit_bias"].items()})

    def fork(self, parent: int, child: int) -> None:
        self.table.copy(parent, child)
