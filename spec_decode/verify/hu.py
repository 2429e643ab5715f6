"""The verifier of greedy multi-draft sampling (Hu et al., arXiv 2502.18779)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from samplers.contract import Param
from samplers.rng import Noise
from spec_decode.contract import VERIFIERS, Law, Verdict
from spec_decode.verify.batch import DraftBatch
from spec_decode.verify.top_down import top_down


@VERIFIERS.register
class GreedyMultiDraft:
    """Drafts are a set T of certain tokens, and x drawn from q off T. x is tested; if it fails, a token is drawn from
    norm (p - q)+, which is an accepted draft wherever it is in T. This coupling reaches the most that the law of these
    drafts allows. Several drawn siblings are tested in turn."""

    name = "hu"
    lossless = True
    params: ClassVar[tuple[Param, ...]] = ()

    def verify(self, batch: DraftBatch, noise: Noise, params: Mapping[str, npt.NDArray[np.float64]]) -> Verdict:
        return top_down(batch, noise, batch.present & (batch.laws == Law.DENSE))
