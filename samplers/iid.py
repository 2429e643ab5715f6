"""The plain draw: one token from the final row, by integer weights and 52 random bits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samplers.contract import Rows, State
from samplers.quantise import draw
from samplers.registry import DRAWS
from samplers.stage import BaseDraw


@DRAWS.register
class Iid(BaseDraw):
    """P(token) differs from the row by at most V 2^-52."""

    name = "iid"

    def pick(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        return draw(logits, torch.from_numpy(rows.noise.draw_bits()).to(logits.device))
