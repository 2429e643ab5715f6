"""K-SEQ for independent drafts of one law (SpecTr, Sun et al., arXiv 2310.15141)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_HALVINGS, _WHOLE = 40, 7


class Factor(NamedTuple):
    """The rule accepts each draft with probability min(1, p / (rho q)). All [...] fp64."""

    rho: Tensor  # the smallest factor whose residual has no negative entry, from above
    beta: Tensor  # acceptance of one draft
    accepted: Tensor  # acceptance of any of them, 1 - (1 - beta)^K


def factor(p: Tensor, q: Tensor, drafts: Tensor) -> Factor:
    """p, q: [..., V] fp64; drafts: [...] K >= 1.

    A few halvings over whole rows leave few tokens whose min (p / rho, q) is not known to be the one or the other.
    """
    shape = p.shape[:-1]
    p, q, drafts = p.reshape(-1, p.shape[-1]), q.reshape(-1, q.shape[-1]), drafts.reshape(-1)
    low, high = torch.ones_like(p[:, 0]), drafts.to(p.dtype)
    for _ in range(_WHOLE):
        low, high = _halved(low, high, drafts, lambda rho: torch.minimum(p, q * rho[:, None]).sum(1) / rho)
    under, over = p <= q * low[:, None], p >= q * high[:, None]
    mass, weight = p.masked_fill(~under, 0.0).sum(1), q.masked_fill(~over | under, 0.0).sum(1)
    rows, ids = (~under & ~over).nonzero(as_tuple=True)
    inner_p, inner_q = p[rows, ids], q[rows, ids]

    def beta(rho: Tensor) -> Tensor:
        return weight + mass.index_add(0, rows, torch.minimum(inner_p, inner_q * rho[rows])) / rho

    for _ in range(_HALVINGS - _WHOLE):
        low, high = _halved(low, high, drafts, beta)
    each = beta(high)
    return Factor(*(part.reshape(shape) for part in (high, each, 1 - (1 - each) ** drafts)))


def _halved(low: Tensor, high: Tensor, drafts: Tensor, beta: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Half of each bracket; its upper end is valid."""
    middle = (low + high) / 2
    each = beta(middle)
    valid = 1 - (1 - each) ** drafts <= middle * each
    return torch.where(valid, low, middle), torch.where(valid, middle, high)


def residual(p: Tensor, q: Tensor, found: Factor) -> Tensor:
    """[..., V] weights of the token that follows when every draft was rejected; not normalised."""
    each = torch.where(found.beta > 0, found.accepted / found.beta, 0.0)[..., None]
    return p - torch.minimum(p / found.rho[..., None], q) * each


def acceptance(p: Tensor, q: Tensor, drafts: int) -> Tensor:
    """[...] probability that one of the drafts is accepted."""
    return factor(p, q, torch.full(p.shape[:-1], drafts)).accepted
