"""The children of places in draft trees, chosen from a draft model's rows (spec_decode.md 4.4 to 4.6).

Each law works on P places at once. Rows stay on their device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.argmax import peaks
from samplers.quantise import draw_by_mass

NONE = -1  # in place of a token: the row has no more


@dataclass(frozen=True)
class Siblings:
    """Up to K children of P places, in verification order."""

    tokens: Tensor  # [P, K] int64, or NONE
    drawn: int = 0  # columns that were drawn; those behind them are certain
    q: Tensor | None = None  # [P, V] fp32 rows that they were drawn from
    q_minus: Tensor | None = None  # [P, drawn] fp64 mass of earlier siblings that had been removed; None: nothing


@dataclass(frozen=True)
class Rows:
    """What the model says at P places, and how many children each is to get."""

    logits: Tensor  # [P, V] fp32, processed
    q: Tensor  # [P, V] fp32, their softmax
    counts: Sequence[int]  # [P], at most K
    bits: Tensor  # [K, P] int64 in [0, 2^52): the random numbers of the first, second, ... children


def iid(rows: Rows) -> Siblings:
    tokens = [_draw(rows.q, bits)[0] for bits in rows.bits]
    return Siblings(_joined(tokens), len(tokens), rows.q)


def without_replacement(rows: Rows) -> Siblings:
    """Each child is drawn from its place's row without the tokens of its elder siblings."""
    left = rows.q.clone()
    taken = left.new_zeros(len(left), 1, dtype=torch.float64)
    tokens, minus = [], []
    for bits in rows.bits:
        token, mass = _draw(left, bits)
        tokens.append(token)
        minus.append(taken)
        taken = taken + mass
        left.scatter_(1, token.clamp(min=0), 0.0)  # of a row that gives NONE nothing is left
    return Siblings(_joined(tokens), len(tokens), rows.q, _joined(minus))


def most_probable(rows: Rows) -> Siblings:
    return Siblings(best(rows.logits, len(rows.bits)))


def greedy_construction(rows: Rows) -> Siblings:
    """The most probable tokens but for one place, and before them one drawn off them (Hu et al., arXiv 2502.18779).

    Where they are all there is, nothing is drawn.
    """
    top = best(rows.logits, len(rows.bits) - 1)
    counts = torch.tensor(rows.counts, device=top.device)[:, None]
    top = torch.where(torch.arange(1, 1 + top.shape[1], device=top.device) < counts, top, NONE)
    places, ranks = (top >= 0).nonzero(as_tuple=True)
    rest = rows.q.index_put((places, top[places, ranks]), rows.q.new_zeros(()))
    rest = rest / rest.sum(1, keepdim=True)
    token, _ = _draw(rest, rows.bits[0])
    return Siblings(torch.cat([token, top], 1), 1, rest)


LAWS: Mapping[str, Callable[[Rows], Siblings]] = {
    "auto": iid,  # there is one
    "iid": iid,
    "swor": without_replacement,
    "topk": most_probable,
    "hu": greedy_construction,
}


def best(logits: Tensor, count: int) -> Tensor:
    """[P, count] int64: the most probable tokens of each row in falling order, ties to the lowest id; NONE where all
    others are impossible."""
    found = []
    left = logits.clone() if count > 1 else logits
    for _ in range(count):
        ids, values = peaks(left)
        found.append(torch.where(values > -torch.inf, ids, NONE))
        if len(found) < count:
            left.scatter_(1, ids[:, None], -torch.inf)
    return torch.stack(found, 1) if found else logits.new_empty(len(logits), 0, dtype=torch.int64)


def _draw(mass: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """A token of each row and its mass, both [P, 1]; NONE of a row without mass, or with NaN.

    mass: [P, V]; bits: [P].
    """
    token = draw_by_mass(mass, bits).clamp_(0, mass.shape[1] - 1)[:, None]
    own = mass.gather(1, token)
    return torch.where(own > 0, token, NONE), own


def _joined(columns: Sequence[Tensor]) -> Tensor:
    return columns[0] if len(columns) == 1 else torch.cat(tuple(columns), 1)
