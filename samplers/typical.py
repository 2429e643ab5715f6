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

_PROBES = 64  # tokens that are looked at together, on either side of the expected logit


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
    of nearly equal surprisal are neighbours in a sorted row, so nothing is sorted by distance: above and below the
    expected logit distances rise, and the first token whose distance is enough is searched for on both sides at once.
    """
    vocab = ordered.shape[1]
    offsets = expected - ordered  # [R, V] fp64, rising
    finite = (ordered > -torch.inf).sum(1, keepdim=True).clamp(min=1)  # an emptied row only has to get through
    middle = torch.minimum(torch.searchsorted(offsets, torch.zeros_like(expected)), finite)

    def window(distances: Tensor) -> tuple[Tensor, Tensor]:
        """[low, high) of the tokens within these distances; all [R, K]."""
        low = torch.searchsorted(offsets, -distances)
        return low, torch.minimum(torch.searchsorted(offsets, distances, right=True), finite)

    def enough(distances: Tensor) -> Tensor:
        low, high = window(distances)
        before = mass.gather(1, (low - 1).clamp(min=0)).masked_fill(low == 0, 0.0)
        return (high > low) & (mass.gather(1, (high - 1).clamp(min=0)) - before >= wanted)

    def distances(ranks: Tensor) -> Tensor:
        """[R, 2 K] of tokens above the expected logit and below it. ranks: [R, 2, K], counted from there."""
        places = torch.cat([middle - 1 - ranks[:, 0], middle + ranks[:, 1]], 1)
        return offsets.gather(1, places.clamp(0, vocab - 1)).abs()

    sizes = torch.cat([middle, finite - middle], 1).unsqueeze(2)  # [R, 2, 1]
    # the last rank on either side that is known to be too near, and the first one known to be far enough
    near, far = torch.full_like(sizes, -1), sizes
    steps = torch.arange(1, 1 + _PROBES, device=ordered.device)
    between = vocab + 1
    while between > 1:
        probes = near + (far - near) * steps // (1 + _PROBES)
        fits = enough(distances(probes)).unflatten(1, (2, -1)) & (probes > near)
        known = torch.cat([near, probes, far], 2)
        short = (~fits).sum(2, keepdim=True)  # they come first
        near, far = known.gather(2, short), known.gather(2, short + 1)
        between = -(-between // (1 + _PROBES))
    # should rounding leave even the whole row below the wanted mass, all of it is kept
    crossing = distances(far).masked_fill((far >= sizes).squeeze(2), torch.inf).amin(1, keepdim=True)
    low, high = window(crossing)
    low = low.masked_fill(~expected.isfinite(), 0)  # what is infinite in a row has to stay where it is seen
    return ordered.gather(1, low.clamp(max=vocab - 1)), ordered.gather(1, (high - 1).clamp(min=0))
