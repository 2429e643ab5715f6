"""Locally typical sampling: the tokens whose surprisal is nearest the row's entropy, until they hold mass tau
(Meister et al., arXiv 2202.00666)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samplers.contract import Param, Rows, State
from samplers.registry import STAGES
from samplers.rows import descending, entropy
from samplers.stage import BaseStage

_HALVINGS = 70  # from any interval of doubles to two neighbours


@STAGES.register
class Typical(BaseStage):
    """The crossing token and everything tied with it are kept. May remove the most probable token."""

    name = "typical"
    order = 14
    params = (Param("typical_p", float, 1.0, low=0.0, high=1.0, low_open=True, default=0.9),)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        mean = logits.double().logsumexp(1, keepdim=True)
        ordered = descending(logits).double() - mean  # ln p, falling
        expected = entropy(ordered)
        mass = torch.nn.functional.pad(ordered.exp().cumsum(1), (1, 0))
        low, high = _window(ordered, mass, expected, params["typical_p"].double().unsqueeze(1))
        # the farther of the two ends of what is kept
        first, last = ordered.gather(1, low), ordered.gather(1, high - 1)
        farthest = torch.maximum((first + expected).abs(), (last + expected).abs())
        distance = (logits.double() - mean + expected).abs()
        return logits.masked_fill(distance > farthest, -torch.inf)


def _window(ordered: Tensor, mass: Tensor, expected: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """[low, high) of the sorted row: all tokens within the smallest distance of -entropy that hold the wanted mass.

    ordered: [R, V] fp64, falling; mass: [R, V + 1], of the first i tokens; expected, wanted: [R, 1]. Tokens near one
    value are neighbours in a sorted row, so the distance can be bisected without sorting by it.
    """
    finite = (ordered > -torch.inf).sum(1, keepdim=True)
    rising = -ordered

    def window(distance: Tensor) -> tuple[Tensor, Tensor]:
        low = torch.searchsorted(rising, expected - distance)
        high = torch.searchsorted(rising, expected + distance, right=True)
        return low, torch.minimum(high, finite)

    near = torch.zeros_like(expected)
    last = ordered.gather(1, finite - 1)
    far = torch.maximum((ordered[:, :1] + expected).abs(), (last + expected).abs())
    # rounding can leave even the whole row below the wanted mass: then all of it is kept
    low, high = window(far)
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        a, b = window(middle)
        enough = (mass.gather(1, b) - mass.gather(1, a) >= wanted) & (b > a)
        far, near = torch.where(enough, middle, far), torch.where(enough, near, middle)
        low, high = torch.where(enough, a, low), torch.where(enough, b, high)
    return low, high
