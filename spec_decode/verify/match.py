"""Sample and compare: the ordinary draw decides, drafts only say how many of its tokens fit into one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from samplers.contract import Param
from samplers.rng import Noise
from spec_decode.contract import VERIFIERS, Verdict
from spec_decode.verify.batch import ROOT, DraftBatch
from spec_decode.verify.outcome import verdict


@VERIFIERS.register
class Match:
    """Every token is the one plain decoding would have emitted, for any draw and any drafts.

    Reads `drawn`, which must be there, and neither `p` nor the noise. Accepts a set of one-hot drafts with the
    probability of the set, as every other rule does.
    """

    name = "match"
    lossless = True
    params: ClassVar[tuple[Param, ...]] = ()

    def verify(self, batch: DraftBatch, noise: Noise, params: Mapping[str, npt.NDArray[np.float64]]) -> Verdict:
        assert batch.drawn is not None
        count = len(batch)
        drawn = batch.drawn.cpu().numpy()
        places = np.full(count, ROOT)
        along = np.zeros((count, batch.nodes + 1), bool)  # places reached by the tokens drawn so far
        along[:, 0] = True
        for _ in range(batch.depth):
            drafts = batch.below(along)
            hits = drafts & (batch.tokens == drawn[batch.roots + 1 + places][:, None])
            places = np.where(hits.any(1), hits.argmax(1), places)
            along[:, 0], along[:, 1:] = False, hits
        return verdict(batch, places, drawn[batch.roots + 1 + places])
