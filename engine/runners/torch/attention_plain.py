"""Reference attention: one row at a time over gathered keys, straight from the visibility rule.

Slow on purpose. It is what the fast backends are compared with, and runs wherever torch does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.runners.torch.kernels import apply_sinks, segment_plain
from engine.runners.torch.pool import KvPool
from engine.runners.torch.step import Step


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
            slots = torch.cat([torch.arange(a, b) for a, b in span.runs])[: span.length]
            positions = torch.cat([torch.arange(span.context), torch.from_numpy(span.key_positions)])
            seen = torch.from_numpy(span.seen)
            for i, position in enumerate(span.positions.tolist()):
                row = span.start + i
                visible = torch.cat([torch.ones(span.context, dtype=torch.bool), seen[i]])
                visible &= positions >= spec.first_visible(position)
                chosen = slots[visible].to(query.device)
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
