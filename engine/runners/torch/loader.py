"""Loads a model folder or hub id, checks that it can run here, and sizes its KV memory.

Knows nothing about requests. Every refusal is a `UnsupportedModelError` or `SettingsError` with a readable reason.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM

from engine.generation import eos_token_ids, generation_defaults
from engine.runners.torch.attention import NAME, register
from engine.runners.torch.gate import inspect, text_config
from engine.runners.torch.head import linear_head
from engine.runners.torch.layers import LayerSpec
from engine.runners.torch.mixed_embeddings import MixedEmbeddings, add_spare_rows
from engine.runners.torch.pool import bytes_per_token
from engine.settings import EngineSettings, SettingsError
from samplers.model_facts import NO_FACTS, ModelFacts

log = logging.getLogger(__name__)
GIB = 2**30
MIN_TOKENS = 12  # KV slots that the check of the replayed forward pass writes to


@dataclass(frozen=True)
class LoadedModel:
    """A model that has passed the gate, and what is known about it."""

    model: nn.Module
    layers: list[LayerSpec]
    device: torch.device
    dtype: torch.dtype
    vocab_size: int  # ids [0, vocab_size) may be drawn and sent; the model's head may have more rows
    facts: ModelFacts  # for samplers
    mixtures: MixedEmbeddings | None  # None: the model takes token ids only
    max_model_len: int
    eos_token_ids: frozenset[int]
    generation_defaults: dict[str, Any]  # sampling fields of generation_config.json that are set


@dataclass(frozen=True)
class Sizes:
    """Resolved sizes of one engine."""

    page_size: int
    num_pages: int  # the dummy page included
    max_seqs: int
    max_batch_tokens: int
    max_queued_tokens: int


def load(model_id: str, settings: EngineSettings, tokens: ModelFacts = NO_FACTS) -> LoadedModel:
    """Load and check; `tokens` as in `check`. Raises UnsupportedModelError, SettingsError or OSError."""
    device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"device {device}: this machine or this build of torch has {torch.cuda.device_count()}")
    dtype = getattr(torch, settings.dtype) if settings.dtype else (torch.float32 if device.type == "cpu" else "auto")
    register()
    try:
        model = AutoModelForCausalLM.from_pretrained(model_id, dtype=dtype, attn_implementation=NAME)
    except SafetensorError as error:
        raise OSError(f"its weights cannot be read: {error}") from error
    return check(model.to(device), settings, tokens)


def check(model: nn.Module, settings: EngineSettings, tokens: ModelFacts = NO_FACTS) -> LoadedModel:
    """The loaded form of a model that is already in memory. Raises as `load` does.

    tokens: what the tokenizer knows. Heads are often padded beyond its last piece, and the rows of the padding are not
    tokens.
    """
    register()
    model.eval().requires_grad_(False)
    with torch.inference_mode():
        layers = inspect(model)
    weight = next(model.parameters())
    config = text_config(model)
    limit, why = context_limit(config, layers)
    asked = settings.max_model_len
    if asked is not None and asked > limit:
        raise SettingsError(f"max_model_len {asked} is more than the model's {limit} ({why})")
    mixtures = add_spare_rows(model, _batch_tokens(settings, weight.device))
    rows = model.get_output_embeddings().weight.shape[0]
    generation = model.generation_config
    vocab_size = rows if tokens.pieces is None else min(rows, len(tokens.pieces))
    return LoadedModel(
        model=model,
        layers=layers,
        device=weight.device,
        dtype=weight.dtype,
        vocab_size=vocab_size,
        facts=replace(tokens, head=linear_head(model, vocab_size)),
        mixtures=mixtures,
        max_model_len=asked or limit,
        eos_token_ids=eos_token_ids(generation, config),
        generation_defaults=generation_defaults(generation),
    )


def _batch_tokens(settings: EngineSettings, device: torch.device) -> int:
    return settings.max_batch_tokens or (512 if device.type == "cpu" else 8192)


def context_limit(config: Any, layers: list[LayerSpec]) -> tuple[int, str]:
    """(largest max_model_len, what sets it).

    Dynamic and longrope scaling pick their frequencies from the longest position of the whole packed row, so one
    long request would change all others: such models stop where the frequencies would switch. A window that the
    model keeps only in its mask cannot be applied here, so such models stop at the window.
    """
    limit, why = config.max_position_embeddings, "max_position_embeddings"
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    per_type = rope.values() if rope and all(isinstance(v, dict) for v in rope.values()) else [rope]
    for parameters in per_type:
        kind = parameters.get("rope_type", parameters.get("type"))
        original = parameters.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        if kind == "longrope" and original:
            limit, why = min(limit, original), "original_max_position_embeddings: longrope switches there"
        elif kind == "dynamic" and original:
            limit, why = min(limit, original), "original_max_position_embeddings: dynamic RoPE changes there"
    window = getattr(config, "sliding_window", None)
    uses_window = getattr(config, "use_sliding_window", True)
    if window and uses_window and window < limit and all(layer.window is None for layer in layers):
        types = getattr(config, "layer_types", None)
        if types is None or "sliding_attention" in types:
            log.warning(
                "%s keeps its sliding window of %d in a mask; the context is capped there", config.model_type, window
            )
            limit, why = window, "a sliding window this runner cannot apply"
    return limit, why


def sizes(loaded: LoadedModel, settings: EngineSettings, draft: LoadedModel | None = None) -> Sizes:
    """Resolve every size. Raises SettingsError when the KV memory cannot hold one full sequence.

    draft: a model that has been loaded, too, and gets a pool of as many pages out of the same memory.
    """
    settings.check()
    on_cpu = loaded.device.type == "cpu"
    page = settings.page_size or (64 if on_cpu else 256)  # the CUDA kernel's block table wants multiples of 256
    max_seqs = settings.max_seqs or (64 if on_cpu else 256)
    max_batch = _batch_tokens(settings, loaded.device)
    if max_batch < max_seqs:
        raise SettingsError(f"max_batch_tokens {max_batch} is less than max_seqs {max_seqs}")
    per_token = sum(bytes_per_token(one.layers, one.dtype) for one in (loaded, draft) if one is not None)
    useful = max(max_seqs * (loaded.max_model_len + page), MIN_TOKENS) * per_token
    if on_cpu or settings.kv_bytes:
        available = min(4 * GIB, psutil.virtual_memory().available // 4)
    else:
        from engine.runners.torch.memory import divide

        fewest = max_batch if settings.max_batch_tokens else max_seqs
        max_batch, available = divide(loaded.model, loaded.layers, page, max_batch, fewest, loaded.max_model_len)
    memory = settings.kv_bytes or min(available, useful)
    if memory < MIN_TOKENS * per_token:
        raise SettingsError(f"kv_bytes {memory} holds {memory // per_token} tokens; {MIN_TOKENS} are the least")
    num_pages = 1 + memory // (per_token * page)
    needed = -(-loaded.max_model_len // page)
    if num_pages - 1 < needed:
        raise SettingsError(
            f"kv_bytes {memory} holds {num_pages - 1} pages of {page} tokens; "
            f"one sequence of max_model_len {loaded.max_model_len} needs {needed}"
        )
    queued = 64 * max_batch if settings.max_queued_tokens is None else settings.max_queued_tokens
    return Sizes(page, num_pages, max_seqs, max_batch, queued)
