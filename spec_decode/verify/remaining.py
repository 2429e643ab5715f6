"""What rejected drafts leave of target rows: the mass that later siblings and corrections have to themselves."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spec_decode.verify.batch import DraftBatch, Ids, Mask, Scores, host


class Remaining:
    """One row per slot: the target's row at some place of a request's tree, until something is taken from it.

    Rows that nothing was taken from are read where they are, so acceptance costs nothing as wide as the vocabulary.
    """

    def __init__(self, batch: DraftBatch, slots: int) -> None:
        self._batch = batch
        self._changed = np.zeros(slots, bool)
        self._rest: Tensor | None = None  # [slots, V] fp64

    def renew(self, slots: Ids) -> None:
        """These slots stand for new places."""
        self._changed[slots] = False

    def changed(self, slots: Ids) -> Mask:
        """[k] whether something was taken."""
        return self._changed[slots]

    def rows(self, slots: Ids, requests: Ids, places: Ids) -> Tensor:
        """[k, V] fp64, the caller's own. places: [k] that the slots stand for."""
        batch = self._batch
        rows = batch.p[batch.there(batch.roots[requests] + 1 + places)].double()
        changed = self._changed[slots].nonzero()[0]
        if len(changed) and self._rest is not None:
            rows[batch.there(changed)] = self._rest[batch.there(slots[changed])]
        return rows

    def at(self, slots: Ids, requests: Ids, nodes: Ids) -> Scores:
        """[k] mass at the nodes' tokens, the slots standing for their parents."""
        batch = self._batch
        mass = batch.target_at[requests, nodes]
        changed = self._changed[slots].nonzero()[0]
        if len(changed) and self._rest is not None:
            tokens = batch.tokens[requests[changed], nodes[changed]]
            mass[changed] = host(self._rest[batch.there(slots[changed]), batch.there(tokens)])
        return mass

    def take(self, slots: Ids, requests: Ids, nodes: Ids, rates: Scores) -> Scores:
        """[k] S = sum (rate * row - law)+ of rejected nodes, whose parents' rows become norm (rate * row - law)+.

        A row of which nothing would be left stays as it is.
        """
        batch = self._batch
        rows = self.rows(slots, requests, batch.parents[requests, nodes])
        rest = rows * torch.from_numpy(rates).to(rows.device)[:, None]
        rest.sub_(batch.law(requests, nodes)).clamp_(min=0.0)
        total = rest.sum(1)
        left = total > 0  # false for NaN
        rest = torch.where(left[:, None], rest / total[:, None], rows)
        if self._rest is None:
            self._rest = torch.empty(len(self._changed), rest.shape[1], dtype=torch.float64, device=rest.device)
        self._rest[batch.there(slots)] = rest
        self._changed[slots] = True
        return np.nan_to_num(host(total))
