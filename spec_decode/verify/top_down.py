"""Verification from the root down: what is left of a place's row decides about one child after the other."""

from __future__ import annotations

import numpy as np

from samplers.rng import Noise
from spec_decode.contract import Verdict
from spec_decode.verify.batch import ROOT, DraftBatch, Ids, Mask
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
    places, tokens = np.full(count, ROOT), np.zeros(count, np.int64)
    examined, repaired = np.zeros(count, np.int64), np.zeros(count, np.int64)
    walking = np.arange(count)
    for offset in range(batch.depth + 1):
        if not len(walking):
            break
        waiting = walking
        for rank in range(batch.children.shape[2] - 1):
            nodes = batch.children[waiting, places[waiting] + 1, rank]
            here = (nodes >= 0) & tested[waiting, nodes]
            requests, nodes = waiting[here], nodes[here]
            if not len(requests):
                continue
            examined[requests] += 1
            mass, weight = rest.at(requests, requests, nodes), batch.draft_at(requests, nodes)
            accepted = (uniforms[requests, nodes] * weight < mass) & (weight > 0)
            rejected = requests[~accepted]
            if len(rejected):
                total = rest.take(rejected, rejected, nodes[~accepted], np.ones(len(rejected)))
                repaired[rejected] += total <= 0
            places[requests[accepted]] = nodes[accepted]
            waiting = np.setdiff1d(waiting, requests[accepted])
        moved = np.setdiff1d(walking, waiting)
        if len(waiting):
            rows = rest.rows(waiting, waiting, places[waiting])
            drawn = chance.draw(rows, waiting, np.full(len(waiting), offset), rest.changed(waiting))
            nodes, seen = _found(batch, waiting, places[waiting], drawn, tested)
            examined[waiting] += seen
            tokens[waiting] = drawn
            places[waiting] = np.where(nodes >= 0, nodes, places[waiting])
            moved = np.union1d(moved, waiting[nodes >= 0])
        walking = moved
        rest.renew(walking)
    return verdict(batch, places, tokens, examined, repaired)


def _found(batch: DraftBatch, requests: Ids, places: Ids, drawn: Ids, tested: Mask) -> tuple[Ids, Ids]:
    """([k] the first child not tested whose token was drawn, or -1; [k] how many were not tested)."""
    children = batch.children[requests, places + 1]
    others = (children >= 0) & ~tested[requests[:, None], children]
    hits = others & (batch.tokens[requests[:, None], children] == drawn[:, None])
    nodes = children[np.arange(len(requests)), hits.argmax(1)]
    return np.where(hits.any(1), nodes, -1), others.sum(1)
