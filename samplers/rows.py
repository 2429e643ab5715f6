"""Whole-row quantities that several stages need, and the fastest way to them on each device.

Exponentials are taken in fp32 of distances to the row's peak, and summed in fp64: as accurate as fp64 throughout for
what stages decide, at a fraction of its memory traffic.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def descending(logits: Tensor) -> Tensor:
    """Each row's values, largest first. logits: [R, V] -> [R, V]."""
    if logits.device.type == "cpu":  # numpy's vectorised sort of values alone is some twenty times faster than torch's
        return torch.from_numpy(-np.sort(-logits.numpy(), axis=1))
    return logits.sort(1, descending=True).values


def log_total_and_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(ln sum exp, Shannon entropy in nats) of each row, masked tokens left out. logits: [R, V] -> two [R, 1] fp64."""
    peak = logits.amax(1, keepdim=True)
    below = logits - peak
    weights = below.exp()
    total = weights.sum(1, keepdim=True, dtype=torch.float64)
    mean = below.clamp_(min=-1e30).mul_(weights).sum(1, keepdim=True, dtype=torch.float64) / total
    return peak + total.log(), total.log() - mean


def keep_from(logits: Tensor, threshold: Tensor) -> Tensor:
    """The logits with everything below the row's threshold masked. logits: [R, V]; threshold: [R, 1] of its type."""
    return logits.masked_fill(logits < threshold, -torch.inf)
