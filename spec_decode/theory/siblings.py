"""Probability that one of several drafts for one position is accepted, by rule and draft law.

p, q: [..., V] fp64 -> [...]. K-SEQ has a module of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samplers.rows import highest


def certain(p: Tensor, tokens: Tensor) -> Tensor:
    """Of distinct tokens that were not drawn, under every rule. tokens: [..., n]."""
    return p.gather(-1, tokens).sum(-1)


def rejection_with_replacement(p: Tensor, q: Tensor, drafts: int) -> Tensor:
    """Recursive rejection of independent drafts. What a rejection leaves does not depend on the token."""
    rest, failed = p, torch.ones_like(p[..., 0])
    for _ in range(drafts):
        left = (rest - q).clamp(min=0.0)
        total = left.sum(-1)
        failed = failed * total
        rest = torch.where(total[..., None] > 0, left / total[..., None], rest)
    return 1 - failed


def rejection_without_replacement(p: Tensor, q: Tensor, drafts: int) -> Tensor:
    """Recursive rejection of drafts without replacement, none being added once q is exhausted. Costs O(V^drafts): for
    small vocabularies."""
    accepted = torch.minimum(p, q).sum(-1)
    if drafts == 1:
        return accepted
    left = (p - q).clamp(min=0.0)
    total = left.sum(-1)
    rest = torch.where(total[..., None] > 0, left / total[..., None], p)
    for token in range(p.shape[-1]):
        others = q.clone()
        others[..., token] = 0.0
        mass = others.sum(-1)
        thinned = others / torch.where(mass > 0, mass, 1.0)[..., None]
        failed = (q - p)[..., token].clamp(min=0.0)
        accepted = accepted + failed * rejection_without_replacement(rest, thinned, drafts - 1)
    return accepted


def greedy(p: Tensor, q: Tensor, drafts: int, drawn_first: bool = True) -> Tensor:
    """Of the drafts - 1 most probable tokens of q, and one drawn from q off them (Hu et al., arXiv 2502.18779).

    With the drawn one first, or by the construction's own rule, this is the most that such drafts allow.
    """
    shape = p.shape[:-1]
    p, q = p.reshape(-1, p.shape[-1]), q.reshape(-1, q.shape[-1])
    top = highest(q, drafts - 1)[1] if drafts > 1 else q.new_zeros(len(q), 0, dtype=torch.int64)
    others = q.scatter(1, top, 0.0)
    mass = others.sum(1, keepdim=True)
    others = torch.where(mass > 0, others / mass, 0.0)
    sure = p.gather(1, top).sum(1)
    if not drawn_first:
        others = others * (1 - sure)[:, None]
    return (sure + torch.minimum(p, others).scatter(1, top, 0.0).sum(1)).reshape(shape)
