"""Block verification (Sun et al., arXiv 2403.10444)."""

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
class Block:
    """The longest prefix of a chain that passes is accepted, wherever earlier tokens alone would have failed: traversal
    of a tree that is a chain. Accepts at least as many tokens as the token rule, and as many as any rule can."""

    name = "block"
    lossless = True
    params: ClassVar[tuple[Param, ...]] = ()

    def verify(self, batch: DraftBatch, noise: Noise, params: Mapping[str, npt.NDArray[np.float64]]) -> Verdict:
        batch.check_chains(self.name)
        return leaf_to_root(batch, noise)
