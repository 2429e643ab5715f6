"""Recursive rejection sampling (SpecInfer, arXiv 2305.09781; MCSD, 2401.06706; RSD, 2402.14160)."""

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
class RecursiveRejection:
    """Children are tested one after the other against what those before them have left. Each is judged by the law it
    was drawn from, so drafts with and without replacement, one-hot ones and several drafters may be mixed; siblings
    must stand in the order in which they were drawn."""

    name = "rrs"
    lossless = True
    params: ClassVar[tuple[Param, ...]] = ()

    def verify(self, batch: DraftBatch, noise: Noise, params: Mapping[str, npt.NDArray[np.float64]]) -> Verdict:
        return top_down(batch, noise, batch.present)
