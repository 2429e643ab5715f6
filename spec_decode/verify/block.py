"""Block verification (Sun et al., arXiv 2403.10444)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from samplers.contract import Param
from samplers.rng import Noise
from spec_decode.contract import VERIFIERS, Law, Verdict
from spec_decode.verify.batch import ROOT, DraftBatch, Ids, Mask, Scores, host
from spec_decode.verify.chance import Chance
from spec_decode.verify.outcome import verdict


@VERIFIERS.register
class Block:
    """The longest prefix of a chain that passes is accepted, wherever earlier tokens alone would have failed: traversal
    of a tree that is a chain. Accepts at least as many tokens as the token rule, and as many as any rule can.

    With r_0 = 1 and r_i = min (r_{i-1} p(x_i) / q(x_i), 1), node i passes with probability h_i = S_i / (S_i + 1 - r_i)
    for S_i = sum (r_i p - q)+ of the rows for the next token, the last one with r. As no h_i is above r_i, nodes whose
    number is not below r_i need no S_i. The others are asked from the last one on until one passes, each at O(V).
    """

    name = "block"
    lossless = True
    params: ClassVar[tuple[Param, ...]] = ()

    def verify(self, batch: DraftBatch, noise: Noise, params: Mapping[str, npt.NDArray[np.float64]]) -> Verdict:
        batch.check_chains(self.name)
        count, chance = len(batch), Chance(noise)
        rates, uniforms = _rates(batch), chance.accept(batch.nodes)
        asked = np.ones((count, batch.nodes + 1), bool)  # by place + 1: whether it may pass; the root does
        asked[:, 1:] = _may_pass(batch, rates, uniforms)
        places = _deepest(asked)
        corrected = places < batch.present.sum(1) - 1  # a draft that is rejected follows
        rows = batch.p.new_empty(count, batch.p.shape[1])  # what the token that follows is drawn from
        empty = np.zeros(count, bool)
        waiting = np.flatnonzero(corrected)
        while len(waiting):
            at = places[waiting]
            rate = rates[waiting, at + 1]
            rest = batch.target(waiting, at).mul_(batch.there(rate).to(rows)[:, None])
            mass = host(rest.sub_(batch.law(waiting, at + 1)).clamp_(min=0.0).sum(1))
            certain = batch.laws[waiting, at + 1] == Law.ONE_HOT  # then it is known to pass
            passed = (at == ROOT) | certain | (uniforms[waiting, at] < _chance(mass, rate))
            empty[waiting[passed]] = ~(mass[passed] > 0)
            rest = rest.index_select(0, batch.there(np.flatnonzero(passed)))
            rows.index_copy_(0, batch.there(waiting[passed]), rest)
            waiting = waiting[~passed]
            asked[waiting, places[waiting] + 1] = False
            places[waiting] = _deepest(asked[waiting])
        corrected &= ~empty
        whole = np.flatnonzero(~corrected)
        rows.index_copy_(0, batch.there(whole), batch.target(whole, places[whole]))
        tokens = chance.draw(rows, np.arange(count), places + 1, corrected)
        return verdict(batch, places, tokens, empty)


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


def _may_pass(batch: DraftBatch, rates: Scores, uniforms: Scores) -> Mask:
    """[B, N] nodes that pass, as far as no row as wide as the vocabulary has to be looked at. uniforms: [B, N]."""
    passing = batch.present & (uniforms < rates[:, 1:])
    certain = batch.present[:, 1:] & (batch.laws[:, 1:] == Law.ONE_HOT)  # a next token that is needs one entry of p
    rate = rates[:, 1:-1]
    passing[:, :-1] &= ~certain | (uniforms[:, :-1] < _chance(rate * (1 - batch.target_at[:, 1:]), rate))
    return passing


def _chance(mass: Scores, rate: Scores) -> Scores:
    """h for S and r."""
    missing = mass + 1 - rate
    return np.divide(mass, missing, out=np.ones_like(mass), where=missing > 0)


def _deepest(asked: Mask) -> Ids:
    """[B] the last of the places that are asked. asked: [B, N + 1] by place + 1."""
    return asked.shape[1] - 2 - asked[:, ::-1].argmax(1)
