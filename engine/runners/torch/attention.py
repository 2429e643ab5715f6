"""The attention function transformers' layers call, and the contract of the backends behind it.

The layer hands over this step's queries, keys and values; `step` (our own forward keyword) is the backend,
already prepared with the step's plan. Nothing here is global: two models can run in one process.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor
from transformers import AttentionInterface

from engine.runners.torch.step import Step

NAME = "drafthouse"


class Backend(Protocol):
    """Stores K/V and attends for one model; owned by the engine thread."""

    def prepare(self, step: Step) -> None:
        """Plan the step; the following `attend` calls belong to it."""
        ...

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write K/V and attend. query: [1, Hq, T, D]; key, value: [1, Hkv, T, D] -> [1, T, Hq, Dv]."""
        ...


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, step: Backend, **_: Any
) -> tuple[Tensor, None]:
    return step.attend(module.layer_idx, query, key, value), None


def register() -> None:
    """Make `attn_implementation="drafthouse"` known; no mask function is registered, so masks arrive as None."""
    AttentionInterface.register(NAME, attention)
