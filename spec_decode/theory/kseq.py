"""K-SEQ for independent drafts of one law (SpecTr, Sun et al., arXiv 2310.15141)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_HALVINGS = 40


class Factor(NamedTuple):
    """The rule accepts each draft with probability min(1, p / (rho q)). All [...] fp64."""

    rho: Tensor  # the smallest factor whose residual has no negative entry, from above
    beta: Tensor  # acceptance of one draft
    accepted: Tensor  # acceptance of any of them, 1 - (1 - beta)^K


def factor(p: Tensor, q: Tensor, drafts: Tensor) -> Factor:
    """p, q: [..., V] fp64; drafts: [...] K >= 1. Costs O(40 V)."""
    low, high = torch.ones_like(p[..., 0]), drafts.to(p.dtype)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        beta = _beta(p, q, middle)
        valid = 1 - (1 - beta) ** drafts <= middle * beta
        high, low = torch.where(valid, middle, high), torch.where(valid, low, middle)
    beta = _beta(p, q, high)
    return Factor(high, beta, 1 - (1 - beta) ** drafts)


def residual(p: Tensor, q: Tensor, found: Factor) -> Tensor:
    """[..., V] weights of the token that follows when every draft was rejected; not normalised."""
    each = torch.where(found.beta > 0, found.accepted / found.beta, 0.0)[..., None]
    return p - torch.minimum(p / found.rho[..., None], q) * each


def acceptance(p: Tensor, q: Tensor, drafts: int) -> Tensor:
    """[...] probability that one of the drafts is accepted."""
    return factor(p, q, torch.full(p.shape[:-1], drafts)).accepted


def _beta(p: Tensor, q: Tensor, rho: Tensor) -> Tensor:
    return torch.minimum(p / rho[..., None], q).sum(-1)
