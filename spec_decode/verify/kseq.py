"""K-SEQ: several independent drafts of one law at a position, or along sequences (SpecTr, arXiv 2310.15141)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samplers.contract import Param
from samplers.rng import Noise
from spec_decode.contract import VERIFIERS, Law, TreeError, Verdict
from spec_decode.theory.kseq import factor, residual
from spec_decode.verify.batch import ROOT, DraftBatch, Ids, Mask, Scores, host
from spec_decode.verify.chance import Chance
from spec_decode.verify.outcome import verdict

_ROUNDING = 1e-7  # residuals may be this far below 0


@VERIFIERS.register
class KSeq:
    """Drafts that continue the accepted tokens, of whichever sequence, are tested in turn with one common factor.

    Every sequence needs nodes of its own, equal prefixes or not: how often a token was drafted counts, and so does the
    order. Each set of drafts is judged by the law of its first.
    """

    name = "kseq"
    lossless = True
    params: ClassVar[tuple[Param, ...]] = ()

    def verify(self, batch: DraftBatch, noise: Noise, params: Mapping[str, npt.NDArray[np.float64]]) -> Verdict:
        _check(batch)
        count = len(batch)
        chance = Chance(noise)
        uniforms = chance.accept(batch.nodes)
        places, tokens = np.full(count, ROOT), np.zeros(count, np.int64)
        repaired = np.zeros(count, np.int64)
        along = np.zeros((count, batch.nodes + 1), bool)  # places reached by the tokens accepted so far
        along[:, 0] = True
        walking = np.arange(count)
        for offset in range(batch.depth + 1):
            if not len(walking):
                break
            drafts = batch.below(along)[walking]
            p = batch.target(walking, places[walking]).double()
            drafted = np.any(drafts, 1)
            moved = np.zeros(len(walking), bool)
            if drafted.any():
                requests, drafts, inner = walking[drafted], drafts[drafted], batch.there(drafted.nonzero()[0])
                q = batch.law(requests, drafts.argmax(1)).double()
                found = _position(p[inner], q, drafts, batch.tokens[requests], uniforms[requests])
                accepted, node = found.accepted, found.node
                moved[drafted] = accepted
                places[requests[accepted]] = node[accepted]
                along[requests, 0] = False
                along[requests, 1:] = drafts & (batch.tokens[requests] == batch.tokens[requests, node][:, None])
                p[inner] = found.rest
                repaired[requests] += found.repaired & ~accepted
            stopped = ~moved
            if stopped.any():
                requests, rows = walking[stopped], p[batch.there(stopped.nonzero()[0])]
                tokens[requests] = chance.draw(rows, requests, np.full(len(requests), offset), drafted[stopped])
            walking = walking[moved]
        return verdict(batch, places, tokens, repaired)


class _Position(NamedTuple):
    """What happens to the drafts for one position of each of k requests."""

    accepted: Mask  # [k]
    node: Ids  # [k] the accepted draft; 0 where there is none
    rest: Tensor  # [k, V] weights of the token that follows where there is none
    repaired: Mask  # [k] rounding has left less than nothing of them


def _position(p: Tensor, q: Tensor, drafts: Mask, tokens: Ids, uniforms: Scores) -> _Position:
    """p, q: [k, V] fp64; drafts: [k, N] which nodes stand at the position; tokens, uniforms: [k, N] of the nodes."""
    found = factor(p, q, torch.from_numpy(drafts.sum(1)).to(p.device))
    ids = torch.from_numpy(tokens).to(p.device)
    mass, weight = host(p.gather(1, ids)), host(q.gather(1, ids) * found.rho[:, None])
    passed = drafts & (uniforms * weight < mass) & (weight > 0)
    rest = residual(p, q, found)
    some = rest.amax(1) > 0
    repaired = (rest.amin(1) < -_ROUNDING) | ~some
    rest = torch.where(some[:, None], rest.clamp(min=0.0), p)
    return _Position(np.any(passed, 1), passed.argmax(1), rest, repaired.cpu().numpy())


def _check(batch: DraftBatch) -> None:
    others = batch.siblings & (batch.tokens[:, :, None] != batch.tokens[:, None, :])
    certain = batch.present & (batch.laws == Law.ONE_HOT)
    if batch.thinned.any() or (others & certain[:, :, None]).any():
        raise TreeError("'kseq' verifies independent drafts of one law only")
