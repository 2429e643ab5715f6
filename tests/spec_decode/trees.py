"""Random draft trees in both forms: as the engine hands them to verifiers, and as the reference reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from samplers.contract import Rows
from samplers.iid import Iid
from samplers.rng import Noise, Purpose
from spec_decode.contract import DraftTree, Law
from spec_decode.verify.batch import DraftBatch
from spec_decode.verify.reference import Draft, Row


def simplex(random: np.random.Generator, count: int, vocab: int, zeros: float = 0.0) -> torch.Tensor:
    """[count, V] fp64 rows, some of whose entries are exactly 0."""
    rows = random.dirichlet(np.full(vocab, 0.7), count) * (random.random((count, vocab)) >= zeros)
    rows[rows.sum(1) == 0, 0] = 1.0
    return torch.from_numpy(rows / rows.sum(1, keepdims=True))


def drawn_tree(random: np.random.Generator, parents: Sequence[int], laws: Sequence[str], q: torch.Tensor) -> DraftTree:
    """A tree of these parents. laws: per node "iid" (from its parent's row of q), "swor" (without what earlier siblings
    drew from it, if that leaves anything) or "certain" (any token); q: [nodes + 1, V], row i + 1 for the children of
    node i."""
    tokens: list[int] = []
    minus = []
    for node, (parent, law) in enumerate(zip(parents, laws, strict=True)):
        row = q[parent + 1].numpy().copy()
        elders = [tokens[i] for i in range(node) if parents[i] == parent and laws[i] != "certain"]
        taken = row[list(set(elders))].sum() if law == "swor" else 0.0
        if 0 < taken < 1 - 1e-9:
            row[elders] = 0.0
        else:
            taken = 0.0
        tokens.append(
            int(random.integers(len(row)) if law == "certain" else random.choice(len(row), p=row / row.sum()))
        )
        minus.append(taken)
    certain = np.array([law == "certain" for law in laws], bool)
    return DraftTree(
        np.array(tokens, np.int64),
        np.array(parents, np.int32),
        np.where(certain, Law.ONE_HOT, Law.DENSE).astype(np.uint8),
        np.where(certain, -1, np.array(parents, np.int64) + 1).astype(np.int32),
        np.array(minus, np.float32),
        q,
    )


def drafts_of(tree: DraftTree, vocab: int) -> list[Draft]:
    """The tree as the reference reads it."""
    drafts: list[Draft] = []
    for node, (token, parent) in enumerate(zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True)):
        if tree.laws[node] == Law.ONE_HOT:
            law: Row = [float(other == token) for other in range(vocab)]
        else:
            assert tree.q is not None
            row = tree.q[tree.q_rows[node]].tolist()
            for elder in range(node):
                if tree.q_minus[node] > 0 and drafts[elder].parent == parent and drafts[elder].drawn:
                    row[drafts[elder].token] = 0.0
            law = [weight / sum(row) for weight in row] if tree.q_minus[node] > 0 else row
        drafts.append(Draft(token, parent, law, tree.laws[node] == Law.DENSE))
    return drafts


class Given:
    """Decisions by the numbers of one request's stream, read one by one. noise: one row."""

    def __init__(self, noise: Noise) -> None:
        self._noise = noise

    def accept(self, node: int, probability: float) -> bool:
        return bool(self._noise.uniform(Purpose.ACCEPT, node)[0] < probability)

    def draw(self, offset: int, weights: Row, correction: bool) -> int:
        noise = Noise(self._noise.keys, self._noise.choices, self._noise.positions + offset)
        uniform = noise.uniform(Purpose.RESIDUAL if correction else Purpose.DRAW)[0]
        mass = np.cumsum(np.array(weights, float))
        return int((mass > uniform * mass[-1]).argmax())


def noise_of(seeds: npt.ArrayLike, starts: npt.ArrayLike) -> Noise:
    """One row per request."""
    keys, positions = np.asarray(seeds, np.int64), np.asarray(starts, np.int64)
    return Noise(keys, np.zeros_like(keys), positions)


def plain_draws(batch: DraftBatch, noise: Noise) -> torch.Tensor:
    """What the ordinary draw picks from each row, at the row's own position."""
    places = np.concatenate([np.ones((len(batch), 1), bool), batch.present], 1)
    where = (batch.roots[:, None] + np.arange(batch.nodes + 1))[places]
    owner, depth = np.zeros(len(batch.p), np.int64), np.zeros(len(batch.p), np.int64)
    owner[where], depth[where] = places.nonzero()[0], batch.depths[places]
    rows = Noise(noise.keys[owner], noise.choices[owner], noise.positions[owner] + depth)
    positions = torch.from_numpy(rows.positions)
    return Iid().pick(batch.p.log(), {}, Rows(torch.from_numpy(owner), positions, rows), None)
