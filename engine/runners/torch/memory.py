"""Device memory that forward passes take beside weights and cached keys. CUDA only."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import nn

from engine.runners.torch.attention import Backend
from engine.runners.torch.attention_cuda import CudaAttention, KernelError, refusal
from engine.runners.torch.attention_gather import GatherAttention
from engine.runners.torch.forward import Forward
from engine.runners.torch.layers import LayerSpec
from engine.runners.torch.pool import KvPool
from engine.runners.torch.step import Span, Step
from engine.settings import SettingsError

log = logging.getLogger(__name__)
_KV_SHARE = 0.85  # of what is free beside the worst step; the rest is for graphs, sampler state and fragmentation


class Room(NamedTuple):
    """How a device's free memory is divided."""

    rows: int  # of one step
    kv_bytes: int


def divide(model: nn.Module, layers: list[LayerSpec], page_size: int, rows: int, fewest: int, tokens: int) -> Room:
    """Measure the worst step of `rows` rows. `rows` is halved, not below `fewest`, while a step does not fit or takes
    more than half of what is free. Raises SettingsError when nothing fits."""
    device = next(model.parameters()).device
    while True:
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        try:
            step = forward_bytes(model, layers, page_size, rows, tokens)
        except torch.OutOfMemoryError:
            step = free
        if rows == fewest or step <= free // 2:
            break
        rows = max(fewest, rows // 2)
    if step >= free:
        raise SettingsError(f"max_batch_tokens {rows}: a forward pass of so many rows does not fit into {device}")
    log.info("a step of %d rows takes up to %.2f of %.2f GiB", rows, step / 2**30, free / 2**30)
    return Room(rows, int((free - step) * _KV_SHARE))


@torch.inference_mode()
def forward_bytes(model: nn.Module, layers: list[LayerSpec], page_size: int, rows: int, tokens: int) -> int:
    """Bytes that the worst step takes at its peak: `rows` rows that all have their logits scored, of sequences of up
    to `tokens` tokens. Raises torch.OutOfMemoryError when there are not so many."""
    weight = next(model.parameters())
    device, count = weight.device, min(rows, tokens)
    pool = KvPool(layers, 2 + count // page_size, page_size, weight.dtype, device)
    forward = Forward(model, _backend(pool))
    vocabulary = model.get_input_embeddings().weight.shape[0]
    prompt = _peak(forward, _prompts(rows, count, vocabulary, device), device)
    # Gathered keys are copies: a row with the longest context, read over and over from one page, shows how large.
    # A chunk of a long prompt needs both at once.
    row = _peak(forward, _longest(tokens, page_size, device), device)
    del pool, forward
    torch.cuda.empty_cache()
    return prompt + row


def _backend(pool: KvPool) -> Backend:
    try:
        if refusal(pool, torch.cuda.get_device_capability(pool.keys[0].device)) is None:
            return CudaAttention(pool)
    except KernelError:
        pass  # `attention_choice` will say so
    return GatherAttention(pool)


def _peak(forward: Forward, step: Step, device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    scores = forward(step).float().log_softmax(-1)
    torch.cuda.synchronize(device)
    del scores
    return torch.cuda.max_memory_allocated(device) - before


def _prompts(rows: int, count: int, vocabulary: int, device: torch.device) -> Step:
    """`rows` rows in prompts of `count` tokens, all over the same slots: their content does not matter."""
    counts = [min(count, rows - first) for first in range(0, rows, count)]
    spans = [Span(i * count, n, 0, ((0, n),)) for i, n in enumerate(counts)]
    positions = torch.arange(rows, device=device) % count
    return Step(positions % vocabulary, positions, positions, torch.arange(rows, device=device), spans)


def _longest(tokens: int, page_size: int, device: torch.device) -> Step:
    """One row after `tokens` - 1 others."""
    runs = tuple((0, min(page_size, tokens - first)) for first in range(0, tokens, page_size))
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    return Step(zero, zero + tokens - 1, zero, zero, [Span(0, 1, tokens - 1, runs)])
