"""Paged attention on CPU: a few fused calls over views of the pool, merged by log-sum-exp; nothing is gathered.

Which calls is up to `cpu_plan`; a plan of nothing but lanes can also be executed inside TorchScript, by
`attention_script`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.runners.torch.cpu_plan import LANE_ROWS, Cover, LanePlan, Local, Part, Plan, make_plan, mask_of
from engine.runners.torch.kernels import HIDDEN, apply_sinks, causal_cpu, merge, segment_cpu, segment_plain
from engine.runners.torch.layers import LayerSpec, kind_of
from engine.runners.torch.pool import KvPool
from engine.runners.torch.step import Step


class CpuAttention:
    """`Backend` over a head-major pool."""

    def __init__(self, pool: KvPool, lane_rows: int = LANE_ROWS) -> None:
        assert pool.head_major and lane_rows >= 1
        self.pool = pool
        self._lane_rows = lane_rows
        specs = {kind_of(spec): spec for spec in pool.layers}
        fused = all(s.softcap is None and s.sinks is None and s.value_size == s.key_size for s in pool.layers)
        self._scripted = list(specs.values()) if fused else []
        self._step: Step | None = None
        self._plans: dict[tuple[int | None, int | None, int], Plan] = {}

    def prepare(self, step: Step) -> None:
        self._step = step
        self._plans.clear()

    def lane_plans(self) -> tuple[Tensor, list[LanePlan]] | None:
        """(slots of the step's K/V, a plan for each kind of layer); None: a layer or a span needs more than lanes."""
        step = self._step
        assert step is not None
        if not self._scripted or any(span.count > self._lane_rows for span in step.spans):
            return None
        return step.slots, [self._plan(spec).as_lanes() for spec in self._scripted]

    def _plan(self, spec: LayerSpec) -> Plan:
        assert self._step is not None
        kind = kind_of(spec)
        if kind not in self._plans:
            self._plans[kind] = make_plan(self._step, spec, self.pool.num_slots, self._lane_rows)
        return self._plans[kind]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert self._step is not None
        spec = self.pool.layers[layer]
        self.pool.write(layer, self._step.slots, key, value)
        plan = self._plan(spec)
        rows = query[0].transpose(0, 1)  # [T, Hq, D]
        out, lse = self._cover(plan.covers[0], plan.rows, layer, spec, rows, key, value)
        for cover in plan.covers[1:]:
            out, lse = merge(out, lse, *self._cover(cover, plan.rows, layer, spec, rows, key, value))
        if spec.sinks is not None:
            out = apply_sinks(out, lse, spec.sinks)
        if spec.value_size != spec.key_size:
            out = out[..., : spec.value_size]
        return out.to(query.dtype)[None]

    def _cover(
        self, cover: Cover, count: int, layer: int, spec: LayerSpec, rows: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(out [T, Hq, D] fp32 or the model's dtype, lse [T, Hq] fp32); weight zero for rows the cover lacks."""
        if len(cover) == 1 and cover[0].rows == slice(0, count):
            return self._run(cover[0], layer, spec, rows, key, value)
        out, lse = torch.zeros(rows.shape), torch.full(rows.shape[:2], HIDDEN)
        for part in cover:
            one, lse[part.rows] = self._run(part, layer, spec, rows, key, value)
            out[part.rows] = one.to(out.dtype)
        return out, lse

    def _run(
        self, part: Part, layer: int, spec: LayerSpec, rows: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(out [n, Hq, D], lse [n, Hq] fp32) of one part."""
        if isinstance(part, Local):
            return self._local(part, spec, rows, key, value)
        heads, group, size = spec.kv_heads, spec.group_size, spec.key_size
        keys, values = self.pool.keys[layer], self.pool.values[layer]
        # The query heads of one KV head are rows of one product, so that keys need no copies for them.
        asked = rows[part.rows].reshape(part.count, part.height, heads, group, size).transpose(1, 2)
        shape = (part.count, heads, part.length, size)
        strides = (part.stride * size, keys.stride(0), size, 1)
        out, lse = self._segment(
            spec,
            asked.reshape(part.count, heads, part.height * group, size),
            keys.as_strided(shape, strides, part.start * size),
            values.as_strided(shape, strides, part.start * size),
            part.mask,
        )
        split = (part.count, heads, part.height, group)
        out = out.reshape(*split, size).transpose(1, 2).reshape(-1, heads * group, size)
        return out, lse.reshape(split).transpose(1, 2).reshape(-1, heads * group)

    def _local(self, part: Local, spec: LayerSpec, rows: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if spec.value_size != spec.key_size:
            value = torch.nn.functional.pad(value, (0, spec.key_size - spec.value_size))
        asked = rows[part.rows].transpose(0, 1)[None]  # [1, Hq, n, D]
        key, value = key[:, :, part.rows], value[:, :, part.rows]
        if part.mask is None and spec.softcap is None:
            out, lse = causal_cpu(asked, key, value, spec.scale)
        else:
            mask = part.mask if part.mask is not None else mask_of(np.tri(asked.shape[2], dtype=bool))
            out, lse = self._segment(spec, asked, key, value, mask)
        return out[0].transpose(0, 1), lse[0].transpose(0, 1)

    @staticmethod
    def _segment(
        spec: LayerSpec, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if spec.softcap is not None:  # no fused kernel caps the scores
            return segment_plain(query, key, value, spec.scale, mask, spec.softcap)
        return segment_cpu(query, key, value, spec.scale, mask)
