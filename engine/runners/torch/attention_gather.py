"""Attention over gathered keys, one call per sequence: any device, dtype, mask, soft cap and head size.

Slower than the fused backends (it copies the context it reads), used where none of them applies.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.runners.torch.kernels import HIDDEN, apply_sinks, segment_plain
from engine.runners.torch.layers import LayerSpec
from engine.runners.torch.pool import KvPool
from engine.runners.torch.step import Span, Step


class GatherAttention:
    """`Backend` by copying each sequence's keys."""

    def __init__(self, pool: KvPool) -> None:
        self._pool = pool
        self._step: Step | None = None
        self._slots: list[Tensor] = []  # per span [context + count] int64: everything it may see
        self._masks: dict[tuple[int | None, int | None], list[Tensor]] = {}

    def prepare(self, step: Step) -> None:
        device = step.slots.device
        self._step = step
        self._masks.clear()
        self._slots = []
        for span in step.spans:
            seen = np.concatenate([np.arange(a, b) for a, b in span.runs])[: span.context + span.count]
            self._slots.append(torch.from_numpy(seen).to(device))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert self._step is not None
        spec = self._pool.layers[layer]
        self._pool.write(layer, self._step.slots, key, value)
        return self.read(layer, spec, query)

    def read(self, layer: int, spec: LayerSpec, query: Tensor) -> Tensor:
        """Attend to what is already stored. query: [1, Hq, T, D] -> [1, T, Hq, Dv]."""
        assert self._step is not None
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        axis = 1 if self._pool.head_major else 0
        outputs = []
        for span, slots, mask in zip(self._step.spans, self._slots, self._mask_of(spec, query.device), strict=True):
            k, v = keys.index_select(axis, slots), values.index_select(axis, slots)
            if not self._pool.head_major:
                k, v = k.transpose(0, 1), v.transpose(0, 1)
            asked = query[:, :, span.start : span.stop]
            out, lse = segment_plain(asked, k[None], v[None], spec.scale, mask, spec.softcap)
            rows = out[0].transpose(0, 1)  # [n, Hq, D]
            if spec.sinks is not None:
                rows = apply_sinks(rows, lse[0].transpose(0, 1), spec.sinks)
            outputs.append(rows)
        return torch.cat(outputs)[None, ..., : spec.value_size]

    def _mask_of(self, spec: LayerSpec, device: torch.device) -> list[Tensor]:
        assert self._step is not None
        kind = (spec.window, spec.chunk)
        if kind not in self._masks:
            self._masks[kind] = [_mask(span, spec).to(device) for span in self._step.spans]
        return self._masks[kind]


def _mask(span: Span, spec: LayerSpec) -> Tensor:
    """[n, context + n] fp32: what each row of the span sees."""
    depths = np.arange(span.count) if span.depths is None else span.depths
    positions = np.concatenate([np.arange(span.context), span.context + depths])
    local = np.tri(span.count, dtype=bool) if span.tree is None else span.tree
    seen = np.concatenate([np.ones((span.count, span.context), bool), local], 1)
    low = np.array([spec.first_visible(int(span.context + depth)) for depth in depths])
    seen &= positions[None, :] >= low[:, None]
    return torch.from_numpy(np.where(seen, np.float32(0), np.float32(HIDDEN)))
