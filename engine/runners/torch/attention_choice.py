"""Chooses the attention backend on CUDA: the first that gives the reference's results on this device."""

from __future__ import annotations

import logging

import torch
from torch import nn

from engine.runners.torch.attention import Backend
from engine.runners.torch.attention_cuda import CudaAttention, KernelError, refusal
from engine.runners.torch.attention_gather import GatherAttention
from engine.runners.torch.gate import UnsupportedModelError, text_config
from engine.runners.torch.pool import KvPool
from engine.runners.torch.verification import difference

log = logging.getLogger(__name__)


def choose(model: nn.Module, pool: KvPool) -> Backend:
    """The backend for a fresh pool. Raises UnsupportedModelError when none is right."""
    fused, problem = _fused(model, pool)
    if fused is not None:
        log.info("attention: paged flash kernel; it gives the reference's results here")
        return fused
    log.warning("the paged flash kernel is not used: %s; attention gathers keys instead, which is slower", problem)
    gather = GatherAttention(pool)
    problem = difference(model, gather, pool)
    if problem is not None:
        kind = text_config(model).model_type
        raise UnsupportedModelError(kind, f"attention_differs: {problem}", "use --device cpu")
    return gather


def _fused(model: nn.Module, pool: KvPool) -> tuple[CudaAttention | None, str | None]:
    """(the kernel's backend, None) or (None, why not)."""
    problem = refusal(pool, torch.cuda.get_device_capability(pool.keys[0].device))
    if problem is None:
        try:
            backend = CudaAttention(pool)
        except KernelError as error:
            return None, str(error)
        problem = difference(model, backend, pool)
        if problem is None:
            return backend, None
    return None, problem
