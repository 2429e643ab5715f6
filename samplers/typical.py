"""Locally typical sampling: the tokens whose surprisal is nearest the row's entropy, until they hold mass tau
(Meister et al., arXiv 2202.00666)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samplers.contract import Param, Rows, State
from samplers.registry import STAGES
from samplers.rows import descending, log_total_and_entropy
from samplers.stage import BaseStage

_HALVINGS = 64  # of the distance between the farthest token that counts and none: beyond what fp64 can tell apart
_ASKED = 8  # halvings after which it is asked whether all rows are settled


@STAGES.register
class Typical(BaseStage):
    """The crossing token and everything tied with it are kept. May remove the most probable token."""

    name = "typical"
    order = 14
    params = (Param("typical_p", float, 1.0, low=0.0, high=1.0, low_open=True, default=0.9),)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        total, entropy = log_total_and_entropy(logits)
        ordered = descending(logits)
        mass = (ordered - ordered[:, :1]).exp_().cumsum(1, dtype=torch.float64)
        wanted = params["typical_p"].double().unsqueeze(1) * mass[:, -1:]
        first, last = _window(ordered, mass, total - entropy, wanted)
        return logits.masked_fill((logits > first) | (logits < last), -torch.inf)


def _window(ordered: Tensor, mass: Tensor, expected: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(largest, smallest) logit [R, 1] of the tokens within the smallest distance of the expected logit that hold the
    wanted mass.

    ordered: [R, V] fp32, falling; mass: [R, V] fp64, of the first i + 1 tokens; expected, wanted: [R, 1] fp64. Tokens
    of nearly equal surprisal are neighbours in a sorted row, so the distance is bisected and nothing is sorted by it.
    """
    rising = -ordered
    finite = (ordered > -torch.inf).sum(1, keepdim=True).clamp(min=1)  # an emptied row only has to get through

    def window(distance: Tensor) -> tuple[Tensor, Tensor]:
        """[low, high) of the tokens within the distance."""
        low = torch.searchsorted(rising, _up(-expected - distance))
        high = torch.searchsorted(rising, _down(distance - expected), right=True)
        return low, torch.minimum(high, finite)

    def held(low: Tensor, high: Tensor) -> Tensor:
        before = mass.gather(1, (low - 1).clamp(min=0)).masked_fill(low == 0, 0.0)
        return mass.gather(1, (high - 1).clamp(min=0)) - before

    near = torch.zeros_like(expected)
    inside = torch.zeros_like(finite)  # tokens within the distance that is too short
    # the last token that adds to the mass: those behind it may be at distances that leave the others no resolution
    farthest = ordered.gather(1, (mass < mass[:, -1:]).sum(1, keepdim=True))
    far = torch.maximum((ordered[:, :1] - expected).abs(), (farthest - expected).abs()) * (1 + 1e-12)
    low, high = torch.zeros_like(finite), finite  # should rounding leave even the whole row below the wanted mass
    for step in range(1, 1 + _HALVINGS):
        middle = (near + far) / 2
        a, b = window(middle)
        enough = (b > a) & (held(a, b) >= wanted)
        far, near = torch.where(enough, middle, far), torch.where(enough, near, middle)
        low, high = torch.where(enough, a, low), torch.where(enough, b, high)
        inside = torch.where(enough, inside, (b - a).clamp(min=0))
        if step % _ASKED == 0 and bool((high - low - inside <= 1).all()):
            break  # a single token lies between the two distances: the crossing one
    return ordered.gather(1, low), ordered.gather(1, high - 1)


def _up(bound: Tensor) -> Tensor:
    """The smallest fp32 number that is not below the fp64 one."""
    near = bound.float()
    return torch.where(near.double() < bound, near.nextafter(torch.full_like(near, torch.inf)), near)


def _down(bound: Tensor) -> Tensor:
    """The largest fp32 number that is not above the fp64 one."""
    return -_up(-bound)
