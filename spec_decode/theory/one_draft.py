"""Acceptance of one draft x ~ q for one position of p. p, q: [..., V] fp64 -> [...]."""

from __future__ import annotations

import torch
from torch import Tensor


def distance(p: Tensor, q: Tensor) -> Tensor:
    """Total variation, half the sum of |p - q|."""
    return (p - q).abs().sum(-1) / 2


def tested(p: Tensor, q: Tensor) -> Tensor:
    """By the token rule, and by block verification of one token: 1 - TV, which no rule exceeds."""
    return torch.minimum(p, q).sum(-1)


def matched(p: Tensor, q: Tensor) -> Tensor:
    """By sample and compare, with a draft drawn independently."""
    return (p * q).sum(-1)


def matched_gumbel(p: Tensor, q: Tensor) -> Tensor:
    """By sample and compare, both by the `gumbel` draw with the same noise (Daliri et al., arXiv 2408.07978): between
    (1 - TV) / (1 + TV) and 1 - TV. Costs O(V^2)."""
    both = (p > 0) & (q > 0)
    # the race between x and y: max over p and q of how much faster y is
    ratios = torch.maximum(
        p[..., None, :] / p.where(both, 1.0)[..., :, None], q[..., None, :] / q.where(both, 1.0)[..., :, None]
    )
    return torch.where(both, 1 / ratios.sum(-1), 0.0).sum(-1)


def matched_uniform(p: Tensor, q: Tensor) -> Tensor:
    """By sample and compare, both by the `iid` draw with the same uniform: where cumulative sums overlap."""
    ends = torch.minimum(p.cumsum(-1), q.cumsum(-1))
    starts = torch.maximum(p.cumsum(-1) - p, q.cumsum(-1) - q)
    return (ends - starts).clamp(min=0.0).sum(-1)


def emitted(acceptance: float, length: int) -> float:
    """Expected tokens of a step with a chain of this length, each draft being accepted with one probability."""
    return sum(acceptance**accepted for accepted in range(length + 1))
