"""What rejected drafts leave of target rows: the mass that later siblings and corrections have to themselves."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spec_decode.verify.batch import DraftBatch, Ids, Mask, Scores, host


class Remaining:
    """One row per slot: the target's row at some place of a request's tree, until something is taken from it.

    Rows that nothing was taken from are read where they are, so acceptance costs nothing as wide as the vocabulary.
    Others are kept unnormalised, in the precision of the target's, with their sums in fp64.
    """

    def __init__(self, batch: DraftBatch, slots: int) -> None:
        self._batch = batch
        self._changed = np.zeros(slots, bool)
        self._rest: Tensor | None = None  # [slots, V]
        self._totals = np.ones(slots)

    def renew(self, slots: Ids) -> None:
        """These slots stand for new places."""
        self._changed[slots] = False
        self._totals[slots] = 1.0

    def changed(self, slots: Ids) -> Mask:
        """[k] whether something was taken."""
        return self._changed[slots]

    def rows(self, slots: Ids, requests: Ids, places: Ids) -> Tensor:
        """[k, V] weights, the caller's own. places: [k] that the slots stand for."""
        batch = self._batch
        changed = self._changed[slots]
        if self._rest is None or not changed.any():
            return batch.target(requests, places)
        rows = self._rest.index_select(0, batch.there(slots))
        if not changed.all():
            same = np.flatnonzero(~changed)
            rows.index_copy_(0, batch.there(same), batch.target(requests[same], places[same]))
        return rows

    def at(self, slots: Ids, requests: Ids, nodes: Ids) -> Scores:
        """[k] mass at the nodes' tokens, the slots standing for their parents."""
        batch = self._batch
        mass = batch.target_at[requests, nodes]
        changed = self._changed[slots].nonzero()[0]
        if len(changed) and self._rest is not None:
            tokens = batch.tokens[requests[changed], nodes[changed]]
            kept = slots[changed]
            mass[changed] = host(self._rest[batch.there(kept), batch.there(tokens)]) / self._totals[kept]
        return mass

    def take(self, slots: Ids, requests: Ids, nodes: Ids, rates: Scores) -> Scores:
        """[k] S = sum (rate * row - law)+ of rejected nodes, whose parents' rows become norm (rate * row - law)+.

        A row of which nothing would be left stays as it is.
        """
        batch = self._batch
        rest = self.rows(slots, requests, batch.parents[requests, nodes])
        rest.mul_(torch.from_numpy(rates / self._totals[slots]).to(rest)[:, None])
        rest.sub_(batch.law(requests, nodes)).clamp_(min=0.0)
        totals = host(rest.sum(1, dtype=torch.float64))
        left = totals > 0
        if self._rest is None:
            self._rest = torch.empty(len(self._changed), rest.shape[1], dtype=rest.dtype, device=rest.device)
        if not left.all():
            kept = np.flatnonzero(~left)
            slots_kept, of = slots[kept], requests[kept]
            rest.index_copy_(0, batch.there(kept), self.rows(slots_kept, of, batch.parents[of, nodes[kept]]))
        self._rest.index_copy_(0, batch.there(slots), rest)
        self._totals[slots] = np.where(left, totals, self._totals[slots])
        self._changed[slots] = True
        return np.where(left, totals, 0.0)
