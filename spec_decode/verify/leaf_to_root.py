"""Verification from the leaves up: a place is given up only after everything below it has failed."""

from __future__ import annotations

import numpy as np

from samplers.rng import Noise
from spec_decode.contract import Verdict
from spec_decode.verify.batch import ROOT, DraftBatch
from spec_decode.verify.chance import Chance
from spec_decode.verify.outcome import verdict
from spec_decode.verify.remaining import Remaining


def leaf_to_root(batch: DraftBatch, noise: Noise) -> Verdict:
    """Traversal verification (Weng et al., arXiv 2505.12398): all requests take one step down or up per round.

    Costs O(V) for each node that fails, at most 2 N + 1 rounds, and memory of depth x B x V. What a place has left is
    of no interest once all below it has failed and its own number is above its rate, which does not rise by that.
    """
    count = len(batch)
    chance, rest = Chance(noise), Remaining(batch, count * (batch.depth + 1))  # slots: depth x B + request
    uniforms = chance.accept(batch.nodes)
    rates = np.ones((count, batch.nodes + 1))  # by place + 1: acceptance given everything that has failed
    turns = np.zeros((count, batch.nodes + 1), np.int64)  # by place + 1: rank of the child to visit next
    places = np.full(count, ROOT)
    repaired = np.zeros(count, np.int64)
    active, done = np.arange(count), np.zeros(count, bool)
    while len(active):
        at = places[active]
        slots = batch.depths[active, at + 1] * count + active
        children = batch.children[active, at + 1, turns[active, at + 1]]
        down = children >= 0
        if down.any():
            requests, nodes = active[down], children[down]
            mass, weight = rest.at(slots[down], requests, nodes), batch.draft_at(requests, nodes)
            ratio = np.divide(mass, weight, out=np.zeros(len(nodes)), where=weight > 0)
            rates[requests, nodes + 1] = np.minimum(rates[requests, at[down] + 1] * ratio, 1.0)
            rest.renew(slots[down] + count)
            places[requests] = nodes
        requests, nodes = active[~down], at[~down]
        inner = nodes != ROOT  # the root's rate is 1
        accepted = ~inner
        accepted[inner] = uniforms[requests[inner], nodes[inner]] < rates[requests[inner], nodes[inner] + 1]
        lost, failed = requests[~accepted], nodes[~accepted]
        if len(lost):
            parents = batch.parents[lost, failed]
            turns[lost, parents + 1] += 1
            places[lost] = parents
            above = rates[lost, parents + 1]
            others = batch.children[lost, parents + 1, turns[lost, parents + 1]] >= 0
            matters = others | (parents == ROOT) | (uniforms[lost, parents] < above)
            lost, failed, parents, above = lost[matters], failed[matters], parents[matters], above[matters]
        if len(lost):
            total = rest.take(slots[~down][~accepted][matters] - count, lost, failed, above)
            certain = total + 1.0 - above <= 0  # nothing left although the parent was sure to be accepted
            repaired[lost] += certain
            rates[lost, parents + 1] = np.where(certain, 1.0, total / np.where(certain, 1.0, total + 1.0 - above))
        done[requests[accepted]] = True
        active = active[~done[active]]
    every = np.arange(count)
    offsets = batch.depths[every, places + 1]
    slots = offsets * count + every
    tokens = chance.draw(rest.rows(slots, every, places), every, offsets, rest.changed(slots))
    return verdict(batch, places, tokens, repaired)
