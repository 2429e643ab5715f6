"""Decides at load time whether a model can run here at all, and reads what each layer asks of attention.

A class that ignores our attention function would run without any error and mix up packed requests, so
everything is checked on the loaded model itself: declared layer types, an instrumented forward pass, and
equality with its own eager attention on two packed prompts. The two are compared in float32 whatever the model's
dtype: half precision flips the routing of experts, and then right logits differ as much as wrong ones.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from engine.runners.torch.attention import NAME
from engine.runners.torch.attention_plain import PlainAttention
from engine.runners.torch.full_precision import can_be_widened, in_float32
from engine.runners.torch.layers import LayerSpec
from engine.runners.torch.pool import KvPool
from engine.runners.torch.step import Span, Step

PROMPTS = (17, 11)  # tokens of the two packed prompts
HINT = "--runner vllm may be able to"
_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}
_HARMLESS = {"dropout", "position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states"}
_HARMLESS |= {"is_causal", "logits_to_keep", "return_dict", "output_router_logits"}


class UnsupportedModelError(Exception):
    """The torch runner cannot run this model. `reason` is stable; `hint` names what can."""

    def __init__(self, model_type: str, reason: str, hint: str = HINT) -> None:
        super().__init__(f"model type '{model_type}' cannot run on the torch runner: {reason}; {hint}")
        self.model_type, self.reason, self.hint = model_type, reason, hint


def text_config(model: nn.Module) -> Any:
    """The configuration of the decoder itself."""
    return model.config.get_text_config(decoder=True)


def inspect(model: nn.Module) -> list[LayerSpec]:
    """The layers of a model that passes every check. Raises UnsupportedModelError with the first that fails."""
    config = text_config(model)
    kind = config.model_type
    for layer_type in getattr(config, "layer_types", None) or ():
        if layer_type not in _LAYER_TYPES:
            raise UnsupportedModelError(kind, f"layer_type:{layer_type} (its state would mix packed requests)")
    if not getattr(model, "_supports_attention_backend", False) or getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(kind, "no_attention_backend (the class does not call a replaceable attention)")
    layers = _record(model, kind)
    exact = can_be_widened(model)
    with in_float32(model, len(layers)) if exact else nullcontext():
        difference = _difference(_packed_by_us(model, kind, layers, exact), _eager(model, kind), exact)
    if not difference <= (1e-3 if exact else 5e-2):
        raise UnsupportedModelError(kind, f"differs_from_eager: logits differ by {difference:.2g} of the largest")
    return layers


def _prompts(model: nn.Module) -> list[Tensor]:
    vocabulary = text_config(model).vocab_size
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    return [torch.randint(0, vocabulary, (1, n), generator=generator).to(device) for n in PROMPTS]


def _eager(model: nn.Module, kind: str) -> Tensor:
    """Logits of both prompts, each run alone through the model's own attention; leaves ours switched on."""
    model.set_attn_implementation("eager")
    try:
        rows = [model(input_ids=prompt, use_cache=False).logits[0] for prompt in _prompts(model)]
    except Exception as error:  # whatever upstream raises, the user needs to know which model and why
        raise UnsupportedModelError(kind, f"forward_failed:{type(error).__name__}: {error}") from error
    finally:
        model.set_attn_implementation(NAME)
    return torch.cat(rows)


def _packed(model: nn.Module, step: Any) -> Tensor:
    device = next(model.parameters()).device
    positions = torch.cat([torch.arange(n) for n in PROMPTS])[None].to(device)
    ids = torch.cat(_prompts(model), 1)
    keep = torch.arange(sum(PROMPTS), device=device)
    return model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=keep, step=step).logits[0]


class _Recorder:
    """Stands in for a backend: notes every call and answers zeros."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.calls: dict[int, LayerSpec] = {}

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        step: Any = None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **extras: Any,
    ) -> tuple[Tensor, None]:
        if step is not self:
            raise UnsupportedModelError(self.kind, "step_not_forwarded")
        if attention_mask is not None:
            raise UnsupportedModelError(self.kind, "own_mask (the model builds its own attention mask)")
        if getattr(module, "is_causal", True) is False:
            raise UnsupportedModelError(self.kind, "not_causal")
        for name, given in extras.items():
            if given is not None and name not in _HARMLESS:
                raise UnsupportedModelError(self.kind, f"unknown_argument:{name}")
        if value.shape[3] > query.shape[3]:
            sizes = f"{value.shape[3]} > {query.shape[3]}"
            raise UnsupportedModelError(
                self.kind, f"value_size:{sizes} (values wider than keys do not fit the KV pool)"
            )
        if module.layer_idx in self.calls:
            raise UnsupportedModelError(self.kind, f"calls_per_layer:{module.layer_idx}")
        config = module.config
        types = getattr(config, "layer_types", None)
        layer_type = types[module.layer_idx] if types else None
        window = sliding_window
        if window is None and layer_type == "sliding_attention":
            window = getattr(config, "sliding_window", None)
        self.calls[module.layer_idx] = LayerSpec(
            query_heads=query.shape[1],
            kv_heads=key.shape[1],
            key_size=query.shape[3],
            value_size=value.shape[3],
            scale=scaling if scaling is not None else query.shape[3] ** -0.5,
            window=window,
            chunk=config.attention_chunk_size if layer_type == "chunked_attention" else None,
            softcap=softcap,
            sinks=None if s_aux is None else s_aux.detach().float(),
        )
        shape = (1, query.shape[2], query.shape[1], value.shape[3])
        return torch.zeros(shape, dtype=query.dtype, device=query.device), None


def _record(model: nn.Module, kind: str) -> list[LayerSpec]:
    recorder = _Recorder(kind)
    AttentionInterface.register(f"{NAME}-recorder", recorder)
    model.set_attn_implementation(f"{NAME}-recorder")
    try:
        _packed(model, recorder)
    except UnsupportedModelError:
        raise
    except Exception as error:
        raise UnsupportedModelError(kind, f"forward_failed:{type(error).__name__}: {error}") from error
    finally:
        model.set_attn_implementation(NAME)
    expected = text_config(model).num_hidden_layers
    if not recorder.calls:
        raise UnsupportedModelError(kind, "not_called (attention is the model's own)")
    if sorted(recorder.calls) != list(range(expected)):
        raise UnsupportedModelError(kind, f"calls_per_layer: layers {sorted(recorder.calls)} of {expected}")
    return [recorder.calls[i] for i in range(expected)]


def _packed_by_us(model: nn.Module, kind: str, layers: list[LayerSpec], exact: bool) -> Tensor:
    """Logits of both prompts in one packed row, through the reference backend."""
    weight = next(model.parameters())
    device, dtype = weight.device, torch.float32 if exact else weight.dtype
    total = sum(PROMPTS)
    first, second = PROMPTS
    spans = [Span(0, first, 0, ((0, first),)), Span(first, second, 0, ((first, total),))]
    everything = torch.arange(total, device=device)
    try:
        backend = PlainAttention(KvPool(layers, 1, total, dtype, device))
        backend.prepare(Step(everything, everything, everything, everything, spans))
        return _packed(model, backend)
    except Exception as error:
        raise UnsupportedModelError(kind, f"forward_failed:{type(error).__name__}: {error}") from error


def _difference(together: Tensor, alone: Tensor, exact: bool) -> float:
    """Largest difference of any row, relative to the largest logit. Where the comparison could not be made in
    float32, single rows may differ by another choice of experts: then that of the median row of a prompt counts."""
    rows = (together - alone).float().abs().amax(1) / max(1e-6, alone.abs().max().item())
    return max((part.max() if exact else part.median()).item() for part in rows.split(PROMPTS))
