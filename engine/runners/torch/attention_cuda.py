"""Paged attention on CUDA: torch's variable-length flash attention over a block table.

Rows of half precision without trees, chunks or soft caps go through one kernel call per layer; everything else
through `GatherAttention`. Sinks are applied afterwards, from the kernel's log-sum-exp.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest, varlen_attn

from engine.runners.torch.attention_gather import GatherAttention
from engine.runners.torch.kernels import apply_sinks
from engine.runners.torch.layers import LayerSpec
from engine.runners.torch.pool import KvPool
from engine.runners.torch.step import Step


class CudaAttention:
    """`Backend` over a page-major pool."""

    def __init__(self, pool: KvPool) -> None:
        self._pool = pool
        self._gather = GatherAttention(pool)
        self._step: Step | None = None
        self._fused = False
        self._starts: Tensor | None = None  # [B + 1] int32, rows of each span
        self._used: Tensor | None = None  # [B] int32, tokens each span sees, its own rows included
        self._blocks: Tensor | None = None  # [B, pages] int32
        self._longest = (0, 0)  # rows, keys

    def prepare(self, step: Step) -> None:
        self._step = step
        dtype = self._pool.keys[0].dtype
        self._fused = dtype in (torch.float16, torch.bfloat16) and all(span.tree is None for span in step.spans)
        if not self._fused or any(not self._fits(spec) for spec in self._pool.layers):
            self._gather.prepare(step)
        if self._fused:
            size, device = self._pool.page_size, step.slots.device
            pages = [np.concatenate([np.arange(a // size, -(-b // size)) for a, b in span.runs]) for span in step.spans]
            table = np.zeros((len(pages), max(map(len, pages))), np.int32)
            for row, mine in zip(table, pages, strict=True):
                row[: len(mine)] = mine
            used = np.array([span.context + span.count for span in step.spans], np.int32)
            starts = np.array([0, *(span.stop for span in step.spans)], np.int32)
            self._blocks = torch.from_numpy(table).to(device, non_blocking=True)
            self._used = torch.from_numpy(used).to(device, non_blocking=True)
            self._starts = torch.from_numpy(starts).to(device, non_blocking=True)
            self._longest = max(span.count for span in step.spans), int(used.max())

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert self._step is not None
        spec = self._pool.layers[layer]
        self._pool.write(layer, self._step.slots, key, value)
        if not self._fused or not self._fits(spec):
            return self._gather.read(layer, spec, query)
        shape = (-1, self._pool.page_size, spec.kv_heads, spec.key_size)
        rows, keys = self._longest
        out, lse = varlen_attn(
            query[0].transpose(0, 1).contiguous(),
            self._pool.keys[layer].view(shape),
            self._pool.values[layer].view(shape),
            self._starts,
            None,
            rows,
            keys,
            return_aux=AuxRequest(lse=True),
            scale=spec.scale,
            window_size=(-1 if spec.window is None else spec.window - 1, 0),  # the kernel counts keys before the row
            enable_gqa=spec.group_size > 1,
            seqused_k=self._used,
            block_table=self._blocks,
            num_splits=1,  # results do not depend on batch mates
        )
        if spec.sinks is not None:
            out = apply_sinks(out, lse if lse.shape[0] == out.shape[0] else lse.transpose(0, 1), spec.sinks)
        return out[None, ..., : spec.value_size]

    @staticmethod
    def _fits(spec: LayerSpec) -> bool:
        return spec.softcap is None and spec.chunk is None
