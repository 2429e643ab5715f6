"""Expected accepted length of a chain whose tokens are known. The mean over drafts is what a drafter achieves."""

from __future__ import annotations

import torch
from torch import Tensor


def token_length(p: Tensor, q: Tensor, tokens: Tensor) -> Tensor:
    """Under the token rule. p, q: [..., n, V] fp64, rows of the n positions; tokens: [..., n] -> [...]."""
    return _ratios(p, q, tokens).clamp(max=1.0).cumprod(-1).sum(-1)


def block_length(p: Tensor, q: Tensor, tokens: Tensor) -> Tensor:
    """Under block verification (Sun et al., arXiv 2403.10444); arguments as of `token_length`."""
    ratios = _ratios(p, q, tokens)
    rate = torch.ones_like(ratios[..., 0])
    rejected = []
    for i in range(tokens.shape[-1]):
        if i:
            left = (rate[..., None] * p[..., i, :] - q[..., i, :]).clamp(min=0.0).sum(-1)
            rest = left + 1 - rate
            rejected.append(torch.where(rest > 0, (1 - rate) / rest, 0.0))
        rate = (rate * ratios[..., i]).clamp(max=1.0)
    rejected.append(1 - rate)
    # the length is at least i where one of the lengths from i on passes
    return (1 - torch.stack(rejected, -1).flip(-1).cumprod(-1)).sum(-1)


def _ratios(p: Tensor, q: Tensor, tokens: Tensor) -> Tensor:
    """[..., n] p / q of the drafted tokens, 0 for what the drafter could not have drawn."""
    at = tokens[..., None]
    above, below = p.gather(-1, at)[..., 0], q.gather(-1, at)[..., 0]
    return torch.where(below > 0, above / below, 0.0)
