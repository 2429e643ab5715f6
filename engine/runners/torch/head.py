"""The head of a model, for samplers that reason about it: only if its logits are head @ hidden and nothing else.

Measured, not read from a configuration: soft-capping, scales and biases come in too many spellings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.runners.torch.attention import NAME

_TOKENS = 5
_LOGIT = 40.0  # the hidden states are scaled until the largest logit is this: soft-capping does not show at small ones


def linear_head(model: nn.Module, vocab_size: int) -> Tensor | None:
    """[vocab_size, H], a view of the model's weight; None where the logits are anything but its product."""
    module = model.get_output_embeddings()
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        return None
    products: list[Tensor] = []

    def enlarge(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not given:  # called in a way we do not know
            return None
        hidden = given[0]
        size = functional.linear(hidden, weight).abs().max().clamp(min=1e-6)
        hidden = hidden * (_LOGIT / size).to(hidden.dtype)
        products.append(functional.linear(hidden, weight))
        return (hidden, *given[1:])

    ids = vocab_size // 2 + torch.arange(min(_TOKENS, vocab_size // 2), device=weight.device)[None]
    hook = module.register_forward_pre_hook(enlarge)
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits
    finally:
        model.set_attn_implementation(NAME)
        hook.remove()
    if len(products) != 1 or products[0].shape != logits.shape:
        return None
    error = (logits.double() - products[0].double()).abs().max().item()
    return weight.detach()[:vocab_size] if error < 1e-4 * _LOGIT else None
