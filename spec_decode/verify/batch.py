"""Draft trees of several requests side by side, with the target rows they are judged by.

Structure lives on the host as padded numpy arrays, rows stay on their device; nothing is copied that is as wide as the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spec_decode.contract import DraftTree, Law, TreeError

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float64]
ROOT, ABSENT = -1, -2  # as parents: of the children of the root; of what pads a smaller tree


@dataclass(frozen=True)
class DraftBatch:
    """B trees of at most N >= 1 nodes. A place in a tree is a node, or -1 for the root."""

    tokens: Ids  # [B, N]
    parents: Ids  # [B, N] places; ABSENT pads
    laws: npt.NDArray[np.uint8]  # [B, N] Law
    q_rows: Ids  # [B, N] row of `q`; -1 for ONE_HOT
    thinned: Mask  # [B, N] drawn from its row without the tokens of earlier siblings of the row
    p: Tensor  # [R, V] processed target probabilities, fp32 or fp64; a failed row holds anything
    roots: Ids  # [B] row of `p` of each root; node i has the i-th row after it
    q: Tensor  # [Q, V] draft probabilities, fp32 or fp64
    drawn: Tensor | None = None  # [R] int64 what the request's own draw picks from each row, where it has been asked

    @classmethod
    def of(cls, trees: Sequence[DraftTree], p: Tensor, roots: npt.ArrayLike, drawn: Tensor | None = None) -> DraftBatch:
        """p and drawn may hold rows of others as well. Trees that share a `q` share its memory here, too."""
        sizes = np.array([len(tree.tokens) for tree in trees], np.int64)
        present = np.arange(max(1, sizes.max(initial=0))) < sizes[:, None]  # indices need a column

        def table(parts: Iterable[npt.NDArray[Any]], padding: int, kind: type[np.generic]) -> npt.NDArray[Any]:
            held = np.full(present.shape, padding, kind)
            held[present] = np.concatenate([np.empty(0, kind), *parts])
            return held

        buffers = {id(tree.q): tree.q for tree in trees if tree.q is not None}
        ends = np.cumsum([0, *map(len, buffers.values())])
        first = dict(zip(buffers, ends.tolist(), strict=False))
        before = np.array([first.get(id(tree.q), 0) for tree in trees], np.int64)
        laws = table((tree.laws for tree in trees), Law.ONE_HOT, np.uint8)
        drawn_nodes = laws == Law.DENSE
        rows = list(buffers.values())
        return cls(
            table((tree.tokens for tree in trees), 0, np.int64),
            table((tree.parents for tree in trees), ABSENT, np.int64),
            laws,
            np.where(drawn_nodes, table((tree.q_rows for tree in trees), 0, np.int64) + before[:, None], -1),
            drawn_nodes & (table((tree.q_minus for tree in trees), 0, np.float64) > 0),
            p,
            np.asarray(roots, np.int64),
            p[:0] if not rows else rows[0] if len(rows) == 1 else torch.cat(rows),
            drawn,
        )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def nodes(self) -> int:
        return self.tokens.shape[1]

    @cached_property
    def present(self) -> Mask:
        """[B, N]"""
        return self.parents != ABSENT

    @cached_property
    def depths(self) -> Ids:
        """[B, N + 1] by place + 1: 0 for the root, 1 for its children."""
        if self.are_chains:
            return np.arange(self.nodes + 1) * np.pad(self.present, ((0, 0), (1, 0)))
        depths = np.zeros((len(self), self.nodes + 1), np.int64)
        every = np.arange(len(self))
        for node in range(self.nodes):
            depths[:, node + 1] = (depths[every, self.parents[:, node] + 1] + 1) * self.present[:, node]
        return depths

    @cached_property
    def depth(self) -> int:
        """Of the deepest tree."""
        return int(self.depths.max(initial=0))

    @cached_property
    def siblings(self) -> Mask:
        """[B, N, N] whether two nodes, perhaps the same, have one parent."""
        return (self.parents[:, :, None] == self.parents[:, None, :]) & self.present[:, None, :]

    @cached_property
    def preorder(self) -> Ids:
        """[B, N + 1] by place + 1: when a depth-first walk from the root comes by."""
        sizes, order = np.ones((len(self), self.nodes), np.int64), np.zeros((len(self), self.nodes + 1), np.int64)
        for node in reversed(range(self.nodes)):
            sizes[:, node] += (sizes * (self.parents == node)).sum(1)
        every = np.arange(len(self))
        for node in range(self.nodes):
            elder = (sizes * self._elder[:, node]).sum(1)
            order[:, node + 1] = order[every, self.parents[:, node] + 1] + 1 + elder
        return order

    @cached_property
    def children(self) -> Ids:
        """[B, N + 1, C] by place + 1: children in verification order, then at least one -1."""
        ranks = self._elder.sum(2)
        table = np.full((len(self), self.nodes + 1, int(ranks.max(initial=-1)) + 2), -1)
        requests, nodes = self.present.nonzero()
        table[requests, self.parents[requests, nodes] + 1, ranks[requests, nodes]] = nodes
        return table

    def below(self, places: Mask) -> Mask:
        """[B, N] nodes whose parent is among these places. places: [B, N + 1] by place + 1."""
        return np.take_along_axis(places, np.maximum(self.parents + 1, 0), 1) & self.present

    @cached_property
    def target_at(self) -> Scores:
        """[B, N] p of each node's token, in the row of its parent."""
        return self._at(self.p, self.roots[:, None] + 1 + self.parents, self.present)

    def draft_at(self, requests: Ids, nodes: Ids) -> Scores:
        """[k] probability with which each of these nodes' tokens was drawn. requests, nodes: [k]."""
        weights = self._row_at[requests, nodes]
        thinned = self.thinned[requests, nodes].nonzero()[0]
        if len(thinned):
            weights[thinned] /= host(self._thin(requests[thinned], nodes[thinned]).sum(1, dtype=torch.float64))
        return weights

    def target(self, requests: Ids, places: Ids) -> Tensor:
        """[k, V] rows of `p` at these places, the caller's own. requests, places: [k]."""
        return self.p.index_select(0, self.there(self.roots[requests] + 1 + places))

    def law(self, requests: Ids, nodes: Ids) -> Tensor:
        """[k, V] in the type of `p`: the laws these nodes' tokens were drawn from. requests, nodes: [k]."""
        drawn = (self.laws[requests, nodes] == Law.DENSE).nonzero()[0]
        if len(drawn) == len(nodes):
            return self._drawn_law(requests, nodes)
        law = torch.zeros(len(nodes), self.p.shape[1], dtype=self.p.dtype, device=self.p.device)
        law.scatter_(1, self.there(self.tokens[requests, nodes])[:, None], 1.0)
        if len(drawn):
            law[self.there(drawn)] = self._drawn_law(requests[drawn], nodes[drawn])
        return law

    def there(self, ids: npt.NDArray[Any]) -> Tensor:
        """Indices on the device of the rows."""
        return torch.from_numpy(ids).to(self.p.device)

    @cached_property
    def are_chains(self) -> bool:
        """No node of any tree has siblings."""
        return not (self.present & (self.parents != np.arange(-1, self.nodes - 1))).any()

    def check_chains(self, rule: str) -> None:
        """Raises TreeError unless every node has at most one child."""
        if not self.are_chains:
            raise TreeError(f"'{rule}' verifies chains only")

    @cached_property
    def _row_at(self) -> Scores:
        """[B, N] entry of each node's row at its token; 1 for ONE_HOT."""
        return np.where(self.laws == Law.DENSE, self._at(self.q, self.q_rows, self.q_rows >= 0), 1.0)

    def _at(self, rows: Tensor, which: Ids, where: Mask) -> Scores:
        """[B, N] entries at the nodes' tokens; 0 elsewhere."""
        values = np.zeros(self.tokens.shape)
        values[where] = host(rows[self.there(which[where]), self.there(self.tokens[where])])
        return values

    @cached_property
    def _elder(self) -> Mask:
        """[B, N, N] whether j is an earlier sibling of i."""
        return self.siblings & np.tri(self.nodes, k=-1, dtype=bool)

    def _drawn_law(self, requests: Ids, nodes: Ids) -> Tensor:
        rows = self._thin(requests, nodes)
        thinned = self.thinned[requests, nodes].nonzero()[0]
        if len(thinned):
            rows[self.there(thinned)] /= rows[self.there(thinned)].sum(1, keepdim=True, dtype=torch.float64)
        return rows.to(self.p.dtype)

    def _thin(self, requests: Ids, nodes: Ids) -> Tensor:
        """[k, V]: the drawn nodes' rows without what earlier siblings took, not normalised. What is left is summed
        where it is needed: one minus what was taken would have lost its digits where a row is peaked."""
        rows = self.q.index_select(0, self.there(self.q_rows[requests, nodes]))
        if not self.thinned[requests, nodes].any():
            return rows
        taken = self._elder[requests, nodes] & self.thinned[requests, nodes, None]
        taken &= self.q_rows[requests] == self.q_rows[requests, nodes][:, None]
        places, elders = taken.nonzero()
        rows[self.there(places), self.there(self.tokens[requests[places], elders])] = 0.0
        return rows


def host(values: Tensor) -> Scores:
    """The numbers as fp64 on the host."""
    numbers: Scores = values.double().cpu().numpy()
    return numbers
