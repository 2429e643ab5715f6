"""What TorchScript needs between the passes of a draft model to go on with a chain by itself."""

from __future__ import annotations

from typing import List, Tuple  # noqa: UP035  TorchScript reads these

import torch
from torch import Tensor


def _draw(q: Tensor, bits: Tensor) -> Tensor:
    """`quantise.draw_by_mass`. q: [B, V] fp32; bits: [B] -> [B] int64."""
    mass = q.double()
    mass = mass * (4503599627370496.0 / mass.sum(1, keepdim=True))  # 2 ** quantise.BITS
    weights = mass.long()
    missing = 4503599627370496 - weights.sum(1, keepdim=True)
    weights = weights.scatter_add(1, q.argmax(1, keepdim=True), missing)
    found = torch.searchsorted(weights.cumsum(1), bits.unsqueeze(1), right=True).squeeze(1)
    return found.clamp(0, q.size(1) - 1)


def _lanes_behind(
    lanes: List[List[int]],  # noqa: UP006
    lengths: List[Tensor],  # noqa: UP006
    ends: List[Tensor],  # noqa: UP006
    more: int,
) -> Tuple[List[List[int]], List[Tensor]]:  # noqa: UP006
    """The lanes when every request has `more` tokens more, a negative number for fewer, up to its end, and their masks.
    lengths, ends: [count] of each part."""
    grown: List[List[int]] = []  # noqa: UP006
    masks: List[Tensor] = []  # noqa: UP006
    for part, length, end in zip(lanes, lengths, ends):  # noqa: B905  TorchScript knows no strict
        own = torch.minimum(length + more, end).clamp(min=1)
        longest = int(own.max())
        grown.append([part[0], part[1], part[2], part[3], longest])
        if int(own.min()) < longest:
            hidden = torch.arange(longest).unsqueeze(0) >= own.unsqueeze(1)
            mask = torch.zeros([own.size(0), longest]).masked_fill(hidden, -3.4028234663852886e38)  # kernels.HIDDEN
            masks.append(mask.unsqueeze(1).unsqueeze(1))
        else:
            masks.append(torch.empty([0]))
    return grown, masks


draw = torch.jit.script(_draw)
lanes_behind = torch.jit.script(_lanes_behind)
