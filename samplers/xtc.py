"""XTC, exclude top choices: now and then removes all probable tokens but the least probable of them. No paper;
implemented from the rule."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samplers.contract import Admission, Param, Rows, Shape, State
from samplers.registry import STAGES
from samplers.rng import Purpose
from samplers.stage import BaseStage, FixedState
from samplers.token_table import TokenTable


@STAGES.register
class Xtc(BaseStage):
    """One coin per position. Where a token that would end the text is among those to go, nothing goes."""

    name = "xtc"
    order = 17
    params = (
        Param("xtc_probability", float, 0.0, low=0.0, high=1.0, default=0.5),
        Param("xtc_threshold", float, 0.1, low=0.0, high=1.0, low_open=True),
        Param("xtc_protect", bool, True),
    )

    def is_neutral(self, values: Mapping[str, object]) -> bool:
        # two tokens cannot both have more than half of the mass
        return values["xtc_probability"] == 0.0 or float(values["xtc_threshold"]) > 0.5  # type: ignore[arg-type]

    def new_state(self, shape: Shape) -> State:
        return _Endings(shape)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, _Endings)
        coins = torch.from_numpy(rows.noise.uniform(Purpose.XTC)).to(logits.device)
        flipped = (coins < params["xtc_probability"].double()).unsqueeze(1)
        if not bool(flipped.any()):
            return logits
        threshold = logits.logsumexp(1, keepdim=True) + params["xtc_threshold"].log().unsqueeze(1)
        probable = logits >= threshold
        least = logits.masked_fill(~probable, torch.inf).amin(1, keepdim=True)
        removed = probable & (logits > least)
        protected = state.table.any(removed, rows.slots) & params["xtc_protect"]
        return logits.masked_fill(removed & flipped & ~protected.unsqueeze(1), -torch.inf)


class _Endings(FixedState):
    """The ids that end each slot's text."""

    def __init__(self, shape: Shape) -> None:
        self.table = TokenTable(shape)

    def admit(self, slot: int, admission: Admission) -> None:
        self.table.write(slot, dict.fromkeys(sorted(admission.ending_ids), 1.0))

    def fork(self, parent: int, child: int) -> None:
        self.table.copy(parent, child)
