"""The most that drafts of a law can be accepted, whatever the verifier (Hu et al., arXiv 2502.18779).

It is 1 + min over sets H of tokens of p(H) - Pr(all drafts are in H). For drafts from one row q the minimum is found
among the first tokens in descending order of q / p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

_POWER, _POINTS = 8, 64  # of the quadrature: w = s^8 at Gauss-Legendre nodes is accurate to 2e-9


def of_law(p: Sequence[float], law: Mapping[tuple[int, ...], float]) -> float:
    """For any joint law of drafts. Costs O(2^V): for small vocabularies."""
    subsets = (set(chosen) for size in range(len(p) + 1) for chosen in combinations(range(len(p)), size))
    return 1.0 + min(
        sum(p[token] for token in subset) - sum(weight for drafts, weight in law.items() if subset.issuperset(drafts))
        for subset in subsets
    )


def with_replacement(p: Tensor, q: Tensor, drafts: int) -> Tensor:
    """For independent drafts. p, q: [..., V] fp64 -> [...]. Costs O(V log V)."""
    p, q = _ordered(p, q)
    return _best(p, q.cumsum(-1) ** drafts)


def without_replacement(p: Tensor, q: Tensor, drafts: int) -> Tensor:
    """For drafts without replacement, none being added once q is exhausted. p, q: [..., V] fp64 -> [...].

    Costs O(V log V) for two drafts, and O(V^2 drafts) times 64 for more, exact to some 1e-8.
    """
    p, q = _ordered(p, q)
    if drafts == 1:
        return _best(p, q.cumsum(-1))
    if drafts == 2:
        odds = torch.where(q < 1, q / (1 - q), 0.0)
        inside = q.cumsum(-1) * odds.cumsum(-1) - (q * odds).cumsum(-1)
        return _best(p, torch.where(_complete(q), 1.0, inside))
    inside = torch.stack([_all_among(q[..., :size], drafts) for size in range(1, q.shape[-1] + 1)], -1)
    return _best(p, torch.where(_complete(q), 1.0, inside))


def _ordered(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    order = (
        torch.where(p > 0, q / p, torch.where(q > 0, torch.inf, 0.0)).sort(dim=-1, descending=True, stable=True).indices
    )
    return p.gather(-1, order), q.gather(-1, order)


def _best(p: Tensor, inside: Tensor) -> Tensor:
    """inside: [..., V] probability that all drafts are among the first tokens, 1 for all of them."""
    return 1 + (p.cumsum(-1) - inside).amin(-1)


def _complete(q: Tensor) -> Tensor:
    """[..., V] whether no token behind could be drafted."""
    return q.flip(-1).cumsum(-1).flip(-1) - q <= 0


def _all_among(q: Tensor, drafts: int) -> Tensor:
    """Probability that the first `drafts` tokens of an exponential race are among those of rates q, the others having
    the rate 1 - q(H) together. q: [..., |H|] -> [...]."""
    points, weights = np.polynomial.legendre.leggauss(_POINTS)
    s = torch.from_numpy((points + 1) / 2).to(q)
    measure = torch.from_numpy(weights / 2).to(q) * _POWER * s ** (_POWER - 1)
    others = (1 - q.sum(-1)).clamp(min=1e-300)[..., None]
    counts = [torch.ones_like(s).expand(*q.shape[:-1], _POINTS)]  # of those that came earlier, up to drafts - 1
    counts += [torch.zeros_like(counts[0])] * (drafts - 1)
    for token in range(q.shape[-1]):
        late = s ** (_POWER * q[..., token, None] / others)
        counts = [count * late + (counts[i - 1] * (1 - late) if i else 0.0) for i, count in enumerate(counts)]
    return ((1 - sum(counts)) * measure).sum(-1)
