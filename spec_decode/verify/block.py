"""Block verification (Sun et al., arXiv 2403.10444)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from samplers.contract import Param
from samplers.rng import Noise
from spec_decode.contract import VERIFIERS, Law, Verdict
from spec_decode.verify.batch import ROOT, DraftBatch, Ids, Scores, host
from spec_decode.verify.chance import Chance
from spec_decode.verify.outcome import verdict


@VERIFIERS.register
class Block:
    """The longest prefix of a chain that passes is accepted, wherever earlier tokens alone would have failed: traversal
    of a tree that is a chain, all of its nodes at once. Accepts at least as many tokens as the token rule, and as many
    as any rule can.

    With r_0 = 1 and r_i = min (r_{i-1} p(x_i) / q(x_i), 1), node i passes with probability h_i = S_i / (S_i + 1 - r_i)
    for S_i = sum (r_i p - q)+ of the rows for the next token, the last one with r.
    """

    name = "block"
    lossless = True
    params: ClassVar[tuple[Param, ...]] = ()

    def verify(self, batch: DraftBatch, noise: Noise, params: Mapping[str, npt.NDArray[np.float64]]) -> Verdict:
        batch.check_chains(self.name)
        count, chance = len(batch), Chance(noise)
        every, lengths = np.arange(count), batch.present.sum(1)
        rates = _rates(batch)
        passing = rates[:, 1:].copy()  # h, by node; that of the last one
        last = np.maximum(lengths - 1, 0)
        uniforms = chance.accept(batch.nodes)
        whole = (lengths > 0) & (uniforms[every, last] < passing[every, last])
        inner = batch.present & (np.arange(batch.nodes) < last[:, None]) & ~whole[:, None]
        if inner.any():
            requests, nodes = inner.nonzero()
            passing[requests, nodes] = _chances(batch, requests, nodes, rates[requests, nodes + 1])
        passed = batch.present & (uniforms < passing)
        places = np.where(passed.any(1), batch.nodes - 1 - passed[:, ::-1].argmax(1), ROOT)
        places = np.where(whole, last, places)
        cut = np.flatnonzero(places + 1 < lengths)  # a draft that was rejected follows
        rows = batch.p[batch.there(batch.roots + 1 + places)]
        repaired = np.zeros(count, np.int64)
        if len(cut):
            rest = _residual(batch, cut, places[cut], rates[cut, places[cut] + 1])
            left = host(rest.sum(1)) > 0
            rows[batch.there(cut[left])] = rest[batch.there(np.flatnonzero(left))]
            repaired[cut[~left]] = 1
        corrections = places + 1 < lengths
        tokens = chance.draw(rows, every, places + 1, corrections & (repaired == 0))
        return verdict(batch, places, tokens, repaired)


def _rates(batch: DraftBatch) -> Scores:
    """[B, N + 1] r by place + 1; that of the last node behind it."""
    rates = np.ones((len(batch), batch.nodes + 1))
    requests, nodes = batch.present.nonzero()
    weight = np.zeros(batch.tokens.shape)
    weight[requests, nodes] = batch.draft_at(requests, nodes)
    ratio = np.divide(batch.target_at, weight, out=np.zeros_like(weight), where=weight > 0)
    for node in range(batch.nodes):
        rates[:, node + 1] = np.minimum(rates[:, node] * np.where(batch.present[:, node], ratio[:, node], 1.0), 1.0)
    return rates


def _chances(batch: DraftBatch, requests: Ids, nodes: Ids, rates: Scores) -> Scores:
    """[k] h of nodes that are followed by another one. requests, nodes, rates: [k]."""
    left = np.zeros(len(nodes))
    certain = batch.laws[requests, nodes + 1] == Law.ONE_HOT  # of the next token, whose row is looked up at one entry
    left[certain] = rates[certain] * (1 - batch.target_at[requests[certain], nodes[certain] + 1])
    drawn = np.flatnonzero(~certain & (rates > 0))
    if len(drawn):
        rest = _residual(batch, requests[drawn], nodes[drawn], rates[drawn])
        left[drawn] = host(rest.sum(1))
    missing = left + 1 - rates
    return np.where(missing > 0, np.divide(left, missing, out=np.ones_like(left), where=missing > 0), 1.0)


def _residual(batch: DraftBatch, requests: Ids, places: Ids, rates: Scores) -> Tensor:
    """[k, V] (r p - q)+ behind these places, q being the law of the node that follows. All: [k]."""
    rest = batch.p[batch.there(batch.roots[requests] + 1 + places)]
    rest.mul_(batch.there(rates).to(rest)[:, None])
    return rest.sub_(batch.law(requests, places + 1)).clamp_(min=0.0)
