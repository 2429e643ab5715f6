"""Speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from samplers.contract import Param
from samplers.rng import Noise
from spec_decode.contract import VERIFIERS, Verdict
from spec_decode.verify.batch import DraftBatch
from spec_decode.verify.top_down import top_down


@VERIFIERS.register
class Token:
    """Accepts x with probability min(1, p(x) / q(x)), otherwise draws from norm (p - q)+: recursive rejection with one
    child per node. One position is accepted with probability 1 - TV(p, q), the most that one draft allows."""

    name = "token"
    lossless = True
    params: ClassVar[tuple[Param, ...]] = ()

    def verify(self, batch: DraftBatch, noise: Noise, params: Mapping[str, npt.NDArray[np.float64]]) -> Verdict:
        batch.check_chains(self.name)
        return top_down(batch, noise, batch.present)
