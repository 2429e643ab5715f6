"""Whole-row quantities that several stages need, and the fastest way to them on each device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def descending(logits: Tensor) -> Tensor:
    """Each row's values, largest first. logits: [R, V] -> [R, V]."""
    if logits.device.type == "cpu":  # numpy's vectorised sort of values alone is some twenty times faster than torch's
        return torch.from_numpy(-np.sort(-logits.numpy(), axis=1))
    return logits.sort(1, descending=True).values


def entropy(logprobs: Tensor) -> Tensor:
    """Shannon entropy in nats, masked tokens left out. logprobs: [R, V], natural logs -> [R, 1]."""
    return -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(1, keepdim=True)


def keep_from(logits: Tensor, threshold: Tensor) -> Tensor:
    """The logits with everything below the row's threshold masked. logits: [R, V]; threshold: [R, 1]."""
    return logits.masked_fill(logits < threshold, -torch.inf)
