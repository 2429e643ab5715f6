"""Typical acceptance (Medusa, Cai et al., arXiv 2401.10774, section 2.3): lossy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from samplers.contract import Param
from samplers.rng import Noise
from spec_decode.contract import VERIFIERS, Verdict
from spec_decode.verify.batch import DraftBatch, Scores, host
from spec_decode.verify.chance import Chance
from spec_decode.verify.outcome import verdict


@VERIFIERS.register
class TypicalAcceptance:
    """A node is accepted if its parent is and p(x) > min(epsilon, alpha exp(-H(p))), H in nats. Of the deepest nodes
    the one with the most probable path is taken, the first in depth-first order among equals. Does not keep the law of
    the target, except of a certain one."""

    name = "typical_acceptance"
    lossless = False
    params = (
        Param("epsilon", float, 0.09, low=0.0, high=1.0, low_open=True, high_open=True),
        Param("alpha", float, 0.3, low=0.0, high=1.0, low_open=True),
    )

    def verify(self, batch: DraftBatch, noise: Noise, params: Mapping[str, npt.NDArray[np.float64]]) -> Verdict:
        every = np.arange(len(batch))
        threshold = np.minimum(params["epsilon"][:, None], params["alpha"][:, None] * np.exp(-_entropies(batch)))
        passed = batch.present & (batch.target_at > threshold)
        accepted = np.ones((len(batch), batch.nodes + 1), bool)  # by place + 1
        scores = np.zeros((len(batch), batch.nodes + 1))  # by place + 1: ln p of the path
        logs = np.log(batch.target_at, out=np.full(passed.shape, -np.inf), where=passed)
        for node in range(batch.nodes):
            above = batch.parents[:, node] + 1
            accepted[:, node + 1] = passed[:, node] & accepted[every, above]
            scores[:, node + 1] = scores[every, above] + logs[:, node]
        depths = np.where(accepted, batch.depths, -1)
        best = np.where(depths == depths.max(1, keepdims=True), scores, -np.inf)
        equal = best == best.max(1, keepdims=True)
        places = np.where(equal, batch.preorder, batch.nodes + 1).argmin(1) - 1
        offsets = batch.depths[every, places + 1]
        tokens = Chance(noise).draw(batch.target(every, places), every, offsets, np.zeros(len(batch), bool))
        return verdict(batch, places, tokens)


def _entropies(batch: DraftBatch) -> Scores:
    """[B, N] entropy of each node's parent's row, in nats."""
    values = np.zeros(batch.tokens.shape)
    rows, which = np.unique((batch.roots[:, None] + 1 + batch.parents)[batch.present], return_inverse=True)
    values[batch.present] = host(torch.special.entr(batch.p[batch.there(rows)].double()).sum(1))[which]
    return values
