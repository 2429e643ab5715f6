"""Proofs that a token has a true probability above zero although the model's own is small.

Finlayson et al., Closing the curious case of neural text degeneration (arXiv 2310.01693), from the formulas: a head of
H columns cannot express every distribution. At an optimum of training the true p satisfies W'p = W'p̂, and p is
assumed to be at most p̂ / (1 - delta). A token is certified if no such p gives it zero. Knows nothing about slots or
requests; everything is fp64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

SURE = 1e-9  # of the size of the terms: what a proof has to exceed to be more than rounding
WORKING = 256  # tokens by which a search grows
ROUNDS = 24  # of growing
STEPS = 60  # of the interior-point method, each round
_CHUNK = 8192  # rows of a head in fp64 at a time
_NEGLIGIBLE = 1e-6  # singular values below this share of the largest are rounding of the weights
_LARGEST_BOX = 1e6  # while searching; the proof is checked with the true one


class Head:
    """A model's head, reduced to the directions in which it says most. Any linear image of W'p = W'p̂ holds as well,
    so fewer directions only prove less."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight  # [V, H], not ours
        self._directions: Tensor | None = None  # [H, <= H] right singular vectors, the strongest first
        self._reduced: dict[int, Tensor] = {}

    def reduced(self, rank: int) -> Tensor:
        """[V, c + 1] fp64, c <= rank: the head along its first `rank` right singular vectors, scaled and shifted
        within the span, and a last column of ones."""
        if rank not in self._reduced:
            self._reduced[rank] = self._reduce(rank)
        return self._reduced[rank]

    def _reduce(self, rank: int) -> Tensor:
        ones = torch.ones(len(self._weight), 1, dtype=torch.float64, device=self._weight.device)
        if rank == 0:
            return ones
        if self._directions is None:
            squares, vectors = torch.linalg.eigh(sum(part.T @ part for part in self._parts()))
            self._directions = vectors[:, squares > squares[-1] * _NEGLIGIBLE**2].flip(1)
        columns = torch.cat([part @ self._directions[:, :rank] for part in self._parts()])
        columns -= columns.mean(0)
        size = columns.square().mean(0).sqrt()
        return torch.cat([columns[:, size > 0] / size[size > 0], ones], 1)

    def _parts(self) -> Iterator[Tensor]:
        return (part.double() for part in self._weight.split(_CHUNK))


class Proof(NamedTuple):
    """y with g(y) > 0 wherever `holds`, and what each token takes away from g."""

    y: Tensor  # [B, m]
    holds: Tensor  # [B] bool
    losses: Tensor  # [B, V]


def check(matrix: Tensor, chances: Tensor, delta: Tensor, tokens: Tensor, y: Tensor) -> Proof:
    """Whether y proves its token: g(y) = b'y - sum over j != i of ub_j max(0, (My)_j) > 0, with M the matrix,
    b = M'p̂ and ub = p̂ / (1 - delta). Over all tokens: leaving out improbable ones would prove too much.

    matrix [V, m], chances p̂ [B, V], delta [B], tokens [B] int64, y [B, m].
    """
    weighted = (y @ matrix.T).mul_(chances)
    limits = weighted.clamp(min=0).mul_((1 / (1 - delta)).unsqueeze(1))
    size = weighted.sum(1).abs() + limits.sum(1) - weighted.clamp(max=0).sum(1) / (1 - delta)
    limits.scatter_(1, tokens.unsqueeze(1), 0.0)
    losses = limits.sub_(weighted)  # g is minus their sum
    return Proof(y, -losses.sum(1) > SURE * size, losses)


def prove(matrix: Tensor, chances: Tensor, delta: Tensor, tokens: Tensor) -> Proof:
    """The best y that can be found for each token; arguments as in `check`.

    Whether a token can have zero is a linear program. It is solved over a few hundred tokens, the others keeping p̂:
    if zero is possible there it is possible, and that is final. Else its dual solution is a candidate proof; where
    that fails over the whole vocabulary, the tokens that make it fail join.
    """
    count, width = len(tokens), matrix.shape[1]
    best = Proof(
        matrix.new_zeros(count, width), torch.zeros(count, dtype=torch.bool, device=matrix.device), chances.clone()
    )
    open_ = torch.arange(count, device=matrix.device)
    members = _join(tokens.unsqueeze(1), chances)
    for _ in range(ROUNDS):
        of = open_.unsqueeze(1)
        found = _solve(matrix[members], chances[of, members], delta[open_])
        proof = check(matrix, chances[open_], delta[open_], tokens[open_], found.y)
        proven = found.positive & proof.holds
        best.y[open_], best.holds[open_] = proof.y, proven
        best.losses[open_] = proof.losses
        going = found.positive & ~proven
        if not bool(going.any()) or members.shape[1] == matrix.shape[0]:
            break
        open_, members = open_[going], _join(members[going], proof.losses[going])
    return best


def _join(members: Tensor, scores: Tensor) -> Tensor:
    """Members [B, K] and the tokens that score highest among the others."""
    rest = scores.scatter(1, members, -torch.inf)
    more = min(WORKING, scores.shape[1] - members.shape[1])
    return torch.cat([members, rest.topk(more, 1).indices], 1)


class _Solution(NamedTuple):
    """`positive`: the least possible p_i is, as far as the search can tell."""

    y: Tensor  # [B, m]
    positive: Tensor  # [B] bool


def _solve(matrix: Tensor, chances: Tensor, delta: Tensor) -> _Solution:
    """The least p_0 subject to M'p = M'p̂ and 0 <= p <= p̂ / (1 - delta), by a primal-dual interior-point method
    (Mehrotra 1992) that starts from p = p̂. matrix [B, K, m], chances [B, K], delta [B].

    In units of p̂: q = p / p̂ in [0, s], t = s - q; v and w are the prices of the two bounds, y those of the equations.
    """
    rows = matrix * chances.unsqueeze(2)
    rows = rows / chances[:, :1].unsqueeze(2)  # p̂_0 is the unit of the equations, so that y is of moderate size
    goal = rows.sum(1)
    box = (1 / (1 - delta)).clamp(max=_LARGEST_BOX).unsqueeze(1)
    cost = torch.zeros_like(chances)
    cost[:, 0] = 1.0
    q = torch.ones_like(chances)
    t = (box - 1).expand_as(q).clamp(min=1e-12).clone()
    w = torch.ones_like(q)
    v = w + cost
    y = goal.new_zeros(goal.shape)
    answer, positive = y.clone(), torch.zeros(len(y), dtype=torch.bool, device=y.device)
    running = torch.ones_like(positive)
    ridge = 1e-13 * torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
    size = 2 * q.shape[1]
    for _ in range(STEPS):
        mean = ((q * v).sum(1, keepdim=True) + (t * w).sum(1, keepdim=True)) / size
        off = cost - _apply(rows, y) - v + w
        short = goal - _gather(rows, q)
        scale = 1 / (v / q + w / t)
        normal = (rows * scale.unsqueeze(2)).mT @ rows
        diagonal = normal.diagonal(dim1=1, dim2=2).clamp(min=1e-300).rsqrt()
        equal = normal * diagonal.unsqueeze(1) * diagonal.unsqueeze(2) + ridge
        factor = torch.linalg.cholesky_ex(equal).L

        def step(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """Newton direction (dy, dq, dv, dw) for these complementarity residuals."""
            pull = off - low / q + high / t  # noqa: B023 - used within this turn of the loop
            right = (short + _gather(rows, scale * pull)) * diagonal  # noqa: B023
            dy = torch.cholesky_solve(right.unsqueeze(2), factor).squeeze(2) * diagonal  # noqa: B023
            dq = scale * (_apply(rows, dy) - pull)  # noqa: B023
            return dy, dq, (low - v * dq) / q, (high + w * dq) / t  # noqa: B023

        _, dq, dv, dw = step(-q * v, -t * w)
        primal, dual = _length(q, dq, t, -dq), _length(v, dv, w, dw)
        after = ((q + primal * dq) * (v + dual * dv)).sum(1, keepdim=True)
        after += ((t - primal * dq) * (w + dual * dw)).sum(1, keepdim=True)
        aim = mean * (after / size / mean) ** 3
        dy, dq, dv, dw = step(aim - q * v - dq * dv, aim - t * w + dq * dw)
        primal, dual = 0.99 * _length(q, dq, t, -dq), 0.99 * _length(v, dv, w, dw)
        q, t = q + primal * dq, t - primal * dq
        y, v, w = y + dual * dy, v + dual * dv, w + dual * dw

        value = _apply(rows, y)
        bound = value.sum(1) - box.squeeze(1) * value[:, 1:].clamp(min=0).sum(1)
        bound = torch.where(value[:, 0] > 0, bound / value[:, 0], 0.0)  # p_0 / p̂_0 is at least this
        done = (bound > 0) & (bound > 0.5 * q[:, 0])
        stuck = (q[:, 0] < 1e-10) | ~torch.isfinite(bound)
        new = running & done
        answer[new], positive[new] = y[new], True
        running = running & ~done & ~stuck
        if not bool(running.any()):
            break
    return _Solution(answer, positive)


def _apply(rows: Tensor, y: Tensor) -> Tensor:
    """[B, K, m], [B, m] -> [B, K]."""
    return (rows @ y.unsqueeze(2)).squeeze(2)


def _gather(rows: Tensor, q: Tensor) -> Tensor:
    """[B, K, m], [B, K] -> [B, m]."""
    return (q.unsqueeze(1) @ rows).squeeze(1)


def _length(one: Tensor, by: Tensor, other: Tensor, along: Tensor) -> Tensor:
    """[B, 1]: the longest step in (0, 1] that keeps both positive."""
    ratios = torch.cat([-by / one, -along / other], 1).amax(1, keepdim=True)
    return 1 / ratios.clamp(min=1.0)
