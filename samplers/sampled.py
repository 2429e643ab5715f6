"""What one call of the stack gives: a token for each row, and everything said about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from samplers.failures import Failures
from samplers.trace import TokenTrace


@dataclass
class Sampled:
    """One token per row. A failed row's token means nothing, but is a token."""

    tokens: Tensor  # [R] int64
    processed: Tensor  # [R, V] fp32, after the last stage
    failures: Failures = field(default_factory=dict)
    traces: dict[int, TokenTrace] = field(default_factory=dict)  # by row, of the slots that asked for it


def joined(parts: Sequence[Sampled], starts: Sequence[int]) -> Sampled:
    """Consecutive blocks of rows as one."""
    return Sampled(
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.processed for part in parts]),
        {at + row: why for at, part in zip(starts, parts, strict=True) for row, why in part.failures.items()},
        {at + row: trace for at, part in zip(starts, parts, strict=True) for row, trace in part.traces.items()},
    )
