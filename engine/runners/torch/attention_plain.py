"""Reference attention: one row at a time over gathered keys, straight from the visibility rule.

Slow on purpose. It is what the fast backends are compared with, and runs wherever torch does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.runners.torch.kernels import apply_sinks, segment_plain
from engine.runners.torch.pool import KvPool
from engine.runners.torch.step import Span, Step


class PlainAttention:
    """`Backend` by the formula."""

    def __init__(self, pool: KvPool) -> None:
        self._pool = pool
        self._step: Step | None = None

    def prepare(self, step: Step) -> None:
        self._step = step

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert self._step is not None
        pool, step, spec = self._pool, self._step, self._pool.layers[layer]
        pool.write(layer, step.slots, key, value)
        keys, values = pool.keys[layer], pool.values[layer]
        if not pool.head_major:
            keys, values = keys.transpose(0, 1), values.transpose(0, 1)
        out = torch.empty(1, query.shape[2], spec.query_heads, spec.key_size, dtype=query.dtype, device=query.device)
        for span in step.spans:
            context = torch.cat([torch.arange(a, b) for a, b in span.runs])[: span.context].to(query.device)
            for i in range(span.count):
                row = span.start + i
                seen = torch.cat([context, step.slots[span.start : span.stop][_visible(span, i)]])
                positions = torch.cat([torch.arange(span.context), _local_positions(span)[_visible(span, i)].cpu()])
                keep = (positions >= spec.first_visible(span.context + _depth(span, i))).to(query.device)
                chosen = seen[keep]
                part, lse = segment_plain(
                    query[:, :, row : row + 1],
                    keys[None, :, chosen],
                    values[None, :, chosen],
                    spec.scale,
                    None,
                    spec.softcap,
                )
                one = part[0, :, 0][None]  # [1, Hq, D]
                if spec.sinks is not None:
                    one = apply_sinks(one, lse[0, :, 0][None], spec.sinks)
                out[0, row] = one[0]
        return out[..., : spec.value_size]


def _depth(span: Span, row: int) -> int:
    return row if span.depths is None else int(span.depths[row])


def _local_positions(span: Span) -> Tensor:
    depths = torch.arange(span.count) if span.depths is None else torch.from_numpy(span.depths)
    return span.context + depths


def _visible(span: Span, row: int) -> Tensor:
    if span.tree is None:
        return torch.arange(span.count) <= row
    return torch.from_numpy(span.tree[row])
