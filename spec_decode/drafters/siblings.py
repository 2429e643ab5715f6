"""The children of places in draft trees, chosen from a draft model's rows (spec_decode.md 4.4 to 4.6).

Each law works on P places at once. Rows stay on their device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    q: Tensor | None = None  # [P, V] fp32 rows that the drawn ones were drawn from
    q_minus: Tensor | None = None  # [P, drawn] fp64 mass of earlier siblings that had been removed

    @property
    def drawn(self) -> int:
        """Columns that were drawn; those behind them are certain."""
        return 0 if self.q_minus is None else self.q_minus.shape[1]


@dataclass(frozen=True)
class Rows:
    """What the model says at P places, and how many children each is to get."""

    logits: Tensor  # [P, V] fp32, processed
    q: Tensor  # [P, V] fp32, their softmax
    counts: Tensor  # [P] int64, at most K
    bits: Tensor  # [P, K] int64 in [0, 2^52): the random numbers of the children


def iid(rows: Rows) -> Siblings:
    return _drawn(rows.q, rows.bits, replaced=True)


def without_replacement(rows: Rows) -> Siblings:
    """Each child is drawn from its place's row without the tokens of its elder siblings."""
    return _drawn(rows.q, rows.bits, replaced=False)


def most_probable(rows: Rows) -> Siblings:
    return Siblings(best(rows.logits, rows.bits.shape[1]))


def greedy_construction(rows: Rows) -> Siblings:
    """The most probable tokens but for one place, and before them one drawn off them (Hu et al., arXiv 2502.18779).

    Where they are all there is, nothing is drawn.
    """
    most = rows.bits.shape[1]
    top = best(rows.logits, most - 1)
    certain = torch.arange(1, most, device=top.device) < rows.counts[:, None]
    top = torch.where(certain, top, NONE)
    places, ranks = (top >= 0).nonzero(as_tuple=True)
    rest = rows.q.index_put((places, top[places, ranks]), rows.q.new_zeros(()))
    rest = rest / rest.sum(1, keepdim=True, dtype=torch.float64).float()
    one = _drawn(rest, rows.bits[:, :1], replaced=True)
    return Siblings(torch.cat([one.tokens, top], 1), one.q, one.q_minus)


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


def _drawn(q: Tensor, bits: Tensor, replaced: bool) -> Siblings:
    """One token of each row per column of bits. A row without mass, or with NaN, gives none."""
    left = q if replaced or bits.shape[1] == 1 else q.clone()
    taken = q.new_zeros(len(q), 1, dtype=torch.float64)
    tokens, minus = [], []
    for column in bits.unbind(1):
        token = draw_by_mass(left, column).clamp_(0, q.shape[1] - 1)[:, None]
        tokens.append(torch.where(left.gather(1, token) > 0, token, NONE))
        minus.append(taken)
        if left is not q:
            taken = taken + left.gather(1, token)
            left.scatter_(1, token, 0.0)
    return Siblings(torch.cat(tokens, 1), q, torch.cat(minus, 1))
