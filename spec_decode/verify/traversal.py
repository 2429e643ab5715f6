"""Traversal verification of trees (Weng et al., arXiv 2505.12398)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from samplers.contract import Param
from samplers.rng import Noise
from spec_decode.contract import VERIFIERS, Verdict
from spec_decode.verify.batch import DraftBatch
from spec_decode.verify.leaf_to_root import leaf_to_root


@VERIFIERS.register
class Traversal:
    """Leaves are tried first, and what failing paths leave goes to the others. Each node is judged by the law it was
    drawn from; siblings must stand in the order in which they were drawn, certain ones best behind drawn ones."""

    name = "traversal"
    lossless = True
    params: ClassVar[tuple[Param, ...]] = ()

    def verify(self, batch: DraftBatch, noise: Noise, params: Mapping[str, npt.NDArray[np.float64]]) -> Verdict:
        return leaf_to_root(batch, noise)
