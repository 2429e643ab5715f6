"""The Gumbel draw: argmax of logit plus noise. The same law as the plain draw, with one uniform per token, so that
two distributions drawn with the same noise agree as often as they can."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samplers.contract import Rows, State
from samplers.registry import DRAWS
from samplers.rng import Noise, Purpose
from samplers.stage import BaseDraw


@DRAWS.register
class Gumbel(BaseDraw):
    """argmax over tokens of ln p - ln(-ln u)."""

    name = "gumbel"

    def pick(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        return torch.from_numpy(perturbed(logits, rows.noise).argmax(1)).to(logits.device)


def perturbed(logits: Tensor, noise: Noise) -> npt.NDArray[np.float64]:
    """[R, V] logit plus noise, whose largest entries are the draws in order. logits: [R, V]; noise: [R]."""
    uniforms = noise.per_token(Purpose.NOISE, logits.shape[1])
    keys: npt.NDArray[np.float64] = logits.cpu().numpy().astype(np.float64) - np.log(-np.log(uniforms))
    return keys
