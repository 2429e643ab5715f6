"""Attention over gathered keys, sequence by sequence: any device, dtype, mask, soft cap and head size.

Slower than the fused backends (it copies the context it reads), used where none of them applies. Long prompts are
computed in blocks of rows, so that scores never take more than a fixed amount of memory.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.runners.torch.kernels import HIDDEN, apply_sinks, segment_plain
from engine.runners.torch.layers import LayerSpec
from engine.runners.torch.pool import KvPool
from engine.runners.torch.step import Span, Step

SCORE_BYTES = 64 * 2**20  # fp32 scores of one block of rows
_KEPT_MASK = 2**16  # elements; smaller masks are kept for the other layers of the step


class GatherAttention:
    """`Backend` by copying each sequence's keys."""

    def __init__(self, pool: KvPool, score_bytes: int = SCORE_BYTES) -> None:
        self._pool = pool
        self._score_bytes = score_bytes
        self._step: Step | None = None
        self._slots: list[Tensor] = []  # per span [length] int64: everything it may see
        self._masks: dict[tuple[int | None, int | None, int, int], Tensor] = {}  # by window, chunk, span, first row

    def prepare(self, step: Step) -> None:
        device = step.slots.device
        self._step = step
        self._masks.clear()
        self._slots = []
        for span in step.spans:
            seen = np.concatenate([np.arange(a, b) for a, b in span.runs])[: span.length]
            self._slots.append(torch.from_numpy(seen).to(device))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert self._step is not None
        spec = self._pool.layers[layer]
        self._pool.write(layer, self._step.slots, key, value)
        return self.read(layer, spec, query)

    def read(self, layer: int, spec: LayerSpec, query: Tensor) -> Tensor:
        """Attend to what is already stored. query: [1, Hq, T, D] -> [1, T, Hq, Dv]."""
        assert self._step is not None
        outputs = []
        for index, span in enumerate(self._step.spans):
            block = max(1, self._score_bytes // (4 * spec.query_heads * span.length))
            for first in range(0, span.count, block):
                count = min(block, span.count - first)
                outputs.append(self._block(layer, spec, query, index, first, count))
        return torch.cat(outputs)[None, ..., : spec.value_size]

    def _block(self, layer: int, spec: LayerSpec, query: Tensor, index: int, first: int, count: int) -> Tensor:
        """Rows first .. first + count - 1 of one span -> [count, Hq, D]."""
        assert self._step is not None
        span = self._step.spans[index]
        if span.tree is None:
            low, high = spec.first_visible(span.context + first), span.context + first + count
        else:  # rows are in no order of depth, and every local row may be somebody's ancestor
            lows = map(spec.first_visible, span.positions[first : first + count].tolist())
            low, high = min(*lows, span.context), span.length
        seen = self._slots[index][low:high]
        k, v = self._gathered(self._pool.keys[layer], seen), self._gathered(self._pool.values[layer], seen)
        size = spec.key_size
        # The query heads of one KV head are rows of one product, so that keys need no copies for them.
        asked = query[0, :, span.start + first : span.start + first + count].reshape(spec.kv_heads, -1, size)
        mask = None
        if count > 1 or span.tree is not None:
            mask = self._mask(spec, index, first, count, low, high, query.device)
            mask = mask.repeat(spec.group_size, 1) if count > 1 else mask
        out, lse = segment_plain(asked[None], k[None], v[None], spec.scale, mask, spec.softcap)
        rows = out.reshape(spec.query_heads, count, size).transpose(0, 1)
        if spec.sinks is not None:
            rows = apply_sinks(rows, lse.reshape(spec.query_heads, count).transpose(0, 1), spec.sinks)
        return rows

    def _gathered(self, store: Tensor, slots: Tensor) -> Tensor:
        """[Hkv, len(slots), D]."""
        if self._pool.head_major:
            return store.index_select(1, slots)
        return store.index_select(0, slots).transpose(0, 1)

    def _mask(
        self, spec: LayerSpec, index: int, first: int, count: int, low: int, high: int, device: torch.device
    ) -> Tensor:
        assert self._step is not None
        name = (spec.window, spec.chunk, index, first)
        mask = self._masks.get(name)
        if mask is None:
            mask = _mask(self._step.spans[index], spec, first, count, low, high, device)
            if mask.numel() <= _KEPT_MASK:
                self._masks[name] = mask
        return mask


def _mask(span: Span, spec: LayerSpec, first: int, count: int, low: int, high: int, device: torch.device) -> Tensor:
    """[count, high - low] fp32: what each row sees of the span's keys low .. high - 1."""
    keys = torch.arange(low, high, device=device)
    if span.tree is None:
        rows = torch.arange(span.context + first, span.context + first + count, device=device)
        seen = keys <= rows[:, None]
    else:
        rows = torch.from_numpy(span.positions[first : first + count]).to(device)
        context = torch.ones(count, span.context - low, dtype=torch.bool, device=device)
        seen = torch.cat([context, torch.from_numpy(span.tree[first : first + count]).to(device)], 1)
        keys = torch.cat([keys[: span.context - low], torch.from_numpy(span.key_positions).to(device)])
    if spec.window is not None:
        seen &= keys > rows[:, None] - spec.window
    elif spec.chunk is not None:
        seen &= keys >= rows[:, None] // spec.chunk * spec.chunk
    return torch.zeros(seen.shape, device=device).masked_fill_(~seen, HIDDEN)
