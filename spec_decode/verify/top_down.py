"""Verification from the root down: what is left of a place's row decides about one child after the other."""

from __future__ import annotations

import numpy as np

from samplers.rng import Noise
from spec_decode.contract import Verdict
from spec_decode.verify.batch import ROOT, DraftBatch, Mask
from spec_decode.verify.chance import Chance
from spec_decode.verify.outcome import verdict
from spec_decode.verify.remaining import Remaining


def top_down(batch: DraftBatch, noise: Noise, tested: Mask) -> Verdict:
    """Recursive rejection of the tested children (MCSD, arXiv 2401.06706, algorithm 1); a token is then drawn from what
    they leave, and the walk goes on where it is one of the other children.

    tested: [B, N]. Costs O(V) for each rejection and each token drawn.
    """
    count = len(batch)
    chance, rest = Chance(noise), Remaining(batch, count)
    uniforms = chance.accept(batch.nodes)
    places, tokens = np.full(count, ROOT), np.full(count, -1)
    repaired = np.zeros(count, np.int64)
    walking = np.arange(count)
    for offset in range(batch.depth):
        moved = np.zeros(count, bool)
        for rank in range(batch.children.shape[2] - 1):
            waiting = walking[~moved[walking]]
            nodes = batch.children[waiting, places[waiting] + 1, rank]
            here = (nodes >= 0) & tested[waiting, nodes]
            requests, nodes = waiting[here], nodes[here]
            if not len(requests):
                continue
            mass, weight = rest.at(requests, requests, nodes), batch.draft_at(requests, nodes)
            accepted = (uniforms[requests, nodes] * weight < mass) & (weight > 0)
            rejected = requests[~accepted]
            if len(rejected):
                total = rest.take(rejected, rejected, nodes[~accepted], np.ones(len(rejected)))
                repaired[rejected] += total <= 0
            moved[requests[accepted]] = True
            places[requests[accepted]] = nodes[accepted]
        waiting = walking[~moved[walking]]
        children = batch.children[waiting, places[waiting] + 1]
        others = (children >= 0) & ~tested[waiting[:, None], children]
        asked = others.any(1)
        if asked.any():
            requests, children, others = waiting[asked], children[asked], others[asked]
            rows = rest.rows(requests, requests, places[requests])
            drawn = chance.draw(rows, requests, np.full(len(requests), offset), rest.changed(requests))
            hits = others & (batch.tokens[requests[:, None], children] == drawn[:, None])
            found = hits.any(1)
            tokens[requests[~found]] = drawn[~found]
            moved[requests[found]] = True
            places[requests[found]] = children[found, hits[found].argmax(1)]
        walking = walking[moved[walking]]
        rest.renew(walking)
    last = (tokens < 0).nonzero()[0]
    if len(last):
        offsets = batch.depths[last, places[last] + 1]
        tokens[last] = chance.draw(rest.rows(last, last, places[last]), last, offsets, rest.changed(last))
    return verdict(batch, places, tokens, repaired)
