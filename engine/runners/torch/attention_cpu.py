"""Paged attention on CPU: a few fused calls over views of the pool, merged by log-sum-exp; nothing is gathered.

The plan of a step is made once per window size and reused by every layer. Its parts:
  Lanes   decode rows whose keys start at regularly spaced slots: one call over a strided view of the pool
  Shared  rows of neighbouring spans over one run of slots (a common prefix, or the context of a prompt chunk)
  Local   this step's rows of one span among themselves, causal or by ancestors
A row may occur in several parts; every part also returns its log-sum-exp, and parts are merged per row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.runners.torch.kernels import HIDDEN, apply_sinks, causal_cpu, merge, segment_cpu, segment_plain
from engine.runners.torch.lanes import Lane, regular_lanes
from engine.runners.torch.layers import LayerSpec, kind_of
from engine.runners.torch.pool import KvPool
from engine.runners.torch.step import Run, Span, Step


@dataclass(frozen=True)
class Lanes:
    rows: Tensor | slice  # rows of T, one per lane
    start: int  # first slot of lane 0
    stride: int  # slots from lane to lane
    count: int
    length: int  # slots of the longest lane
    mask: Tensor | None  # [count, 1, 1, length] fp32, hides what lies beyond a lane's own length


@dataclass(frozen=True)
class Shared:
    rows: slice
    start: int
    stop: int
    mask: Tensor | None  # [rows * G, keys] fp32


@dataclass(frozen=True)
class Local:
    rows: slice
    mask: Tensor | None  # [rows, rows] fp32; None: causal


Part = Lanes | Shared | Local


Cover = tuple[Part, ...]  # parts no two of which hold the same row


@dataclass(frozen=True)
class Plan:
    """Covers are attended to one by one and merged; most steps have one or two."""

    covers: tuple[Cover, ...]
    rows: int


@dataclass(frozen=True)
class Decode:
    """The plan of a step of single rows in TorchScript's types: a lane for every row, perhaps after a common prefix."""

    lanes: list[list[int]]  # start, stride, count, length of each batch of lanes
    rows: list[Tensor]  # rows of T of each batch; one empty tensor: a single batch with every row in order
    masks: list[Tensor]  # as `Lanes.mask`; empty: nothing is hidden
    shared: list[int]  # first and end slot of what all rows see before their lane, or nothing


class CpuAttention:
    """`Backend` over a head-major pool."""

    def __init__(self, pool: KvPool) -> None:
        assert pool.head_major
        self.pool = pool
        specs = {kind_of(spec): spec for spec in pool.layers}
        fused = all(s.softcap is None and s.sinks is None and s.value_size == s.key_size for s in pool.layers)
        self._decoding = list(specs.values()) if fused else []
        self._step: Step | None = None
        self._plans: dict[tuple[int | None, int | None, int], Plan] = {}

    def prepare(self, step: Step) -> None:
        self._step = step
        self._plans.clear()

    def decode(self) -> tuple[Tensor, list[Decode]] | None:
        """(slots of the step's K/V, a plan for each kind of layer) if all rows are single and regular; else None."""
        step = self._step
        assert step is not None
        if not self._decoding or not all(span.is_decode for span in step.spans):
            return None
        plans = [_decode(self._plan(spec)) for spec in self._decoding]
        return None if None in plans else (step.slots, [plan for plan in plans if plan is not None])

    def _plan(self, spec: LayerSpec) -> Plan:
        assert self._step is not None
        kind = kind_of(spec)
        plan = self._plans.get(kind)
        if plan is None:
            plan = self._plans[kind] = _plan(self._step, spec, self.pool.num_slots)
        return plan

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
        asked = rows[part.rows]
        count = asked.shape[0]
        if isinstance(part, Lanes):
            shape = (part.count, heads, part.length, size)
            strides = (part.stride * size, keys.stride(0), size, 1)
            offset = part.start * size
            out, lse = self._segment(
                spec,
                asked.reshape(count, heads, group, size),
                keys.as_strided(shape, strides, offset),
                values.as_strided(shape, strides, offset),
                part.mask,
            )
            return out.reshape(count, -1, size), lse.reshape(count, -1)
        run = slice(part.start, part.stop)
        as_rows = asked.reshape(count, heads, group, size).transpose(0, 1).reshape(1, heads, count * group, size)
        out, lse = self._segment(spec, as_rows, keys[None, :, run], values[None, :, run], part.mask)
        out = out.reshape(heads, count, group, size).transpose(0, 1).reshape(count, -1, size)
        return out, lse.reshape(heads, count, group).transpose(0, 1).reshape(count, -1)

    def _local(self, part: Local, spec: LayerSpec, rows: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if spec.value_size != spec.key_size:
            value = torch.nn.functional.pad(value, (0, spec.key_size - spec.value_size))
        asked = rows[part.rows].transpose(0, 1)[None]  # [1, Hq, n, D]
        key, value = key[:, :, part.rows], value[:, :, part.rows]
        if part.mask is None and spec.softcap is None:
            out, lse = causal_cpu(asked, key, value, spec.scale)
        else:
            mask = part.mask if part.mask is not None else _mask(np.tri(asked.shape[2], dtype=bool))
            out, lse = self._segment(spec, asked, key, value, mask)
        return out[0].transpose(0, 1), lse[0].transpose(0, 1)

    @staticmethod
    def _segment(
        spec: LayerSpec, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if spec.softcap is not None:  # no fused kernel caps the scores
            return segment_plain(query, key, value, spec.scale, mask, spec.softcap)
        return segment_cpu(query, key, value, spec.scale, mask)


def _plan(step: Step, spec: LayerSpec, num_slots: int) -> Plan:
    parts: list[Part] = []
    levels: list[list[Lane]] = []  # a row's k-th lane goes to level k, so a call never holds a row twice
    shared = _shared_lengths(step, spec)
    for group in step.groups:
        first, last = step.spans[group.first], step.spans[group.first + group.count - 1]
        if shared[group.first]:
            rows = slice(first.start, last.stop)
            parts += [Shared(rows, a, b, None) for a, b, _ in _trim(first.runs, 0, group.length)]
    for index, span in enumerate(step.spans):
        if span.is_decode:
            low = max(shared[index], spec.first_visible(span.context))
            for depth, (a, b, _) in enumerate(_trim(span.runs, low, span.context + 1)):
                while len(levels) <= depth:
                    levels.append([])
                levels[depth].append(Lane(span.start, a, b - a))
        else:
            parts += _block_parts(span, spec, shared[index])
    for level in levels:
        parts += [_lanes(batch) for batch in regular_lanes(tuple(level), num_slots)]
    return _covers(parts, step.rows)


def _shared_lengths(step: Step, spec: LayerSpec) -> list[int]:
    """Per span: how many leading tokens are attended to together with its group; 0 where a window forbids it."""
    lengths = [0] * len(step.spans)
    for group in step.groups:
        members = range(group.first, group.first + group.count)
        if all(spec.first_visible(step.spans[i].last_position) == 0 for i in members):
            for i in members:
                lengths[i] = group.length
    return lengths


def _trim(runs: tuple[Run, ...], low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """(first slot, end slot, first token) of the pieces that hold tokens [low, high)."""
    at = 0
    for start, stop in runs:
        a, b = max(low, at), min(high, at + stop - start)
        if a < b:
            yield start + a - at, start + b - at, a
        at += stop - start


def _block_parts(span: Span, spec: LayerSpec, low: int) -> Iterator[Part]:
    """Context and local part of a prompt chunk or a tree."""
    rows = slice(span.start, span.stop)
    positions, keys = span.positions, span.key_positions
    visible = (
        np.array([spec.first_visible(int(p)) for p in positions]) if not spec.is_full else np.zeros(span.count, int)
    )
    for a, b, token in _trim(span.runs, max(low, int(visible.min())), span.context):
        mask = None
        if visible.max() > token:
            seen = (token + np.arange(b - a))[None, :] >= visible[:, None]
            mask = _mask(np.repeat(seen, spec.group_size, 0))
        yield Shared(rows, a, b, mask)
    if span.tree is None and visible.max() <= keys.min():
        yield Local(rows, None)
        return
    seen = span.seen & (keys >= visible[:, None])
    if span.width == span.count:
        yield Local(rows, _mask(seen))
        return
    for a, b, token in _trim(span.runs, span.context, span.length):
        columns = slice(token - span.context, token - span.context + b - a)
        yield Shared(rows, a, b, _mask(np.repeat(seen[:, columns], spec.group_size, 0)))


def _mask(seen: np.ndarray) -> Tensor:
    return torch.from_numpy(np.where(seen, np.float32(0), np.float32(HIDDEN)))


def _lanes(batch: tuple[Lane, ...]) -> Lanes:
    lengths = [lane.length for lane in batch]
    longest = max(lengths)
    mask = None
    if min(lengths) < longest:
        seen = np.arange(longest)[None, :] < np.array(lengths)[:, None]
        mask = _mask(seen)[:, None, None, :]
    rows = [lane.row for lane in batch]
    in_order = rows == list(range(rows[0], rows[0] + len(rows)))
    return Lanes(
        slice(rows[0], rows[0] + len(rows)) if in_order else torch.tensor(rows),
        batch[0].start,
        batch[1].start - batch[0].start if len(batch) > 1 else longest,
        len(batch),
        longest,
        mask,
    )


_NOTHING = torch.empty(0)


def _decode(plan: Plan) -> Decode | None:
    """The plan in TorchScript's types; None for a row in several lanes or a prefix that only some rows share."""
    every = slice(0, plan.rows)
    shared = [part for cover in plan.covers for part in cover if isinstance(part, Shared)]
    lanes = [part for cover in plan.covers for part in cover if isinstance(part, Lanes)]
    if len(shared) > 1 or any(part.rows != every for part in shared) or sum(p.count for p in lanes) != plan.rows:
        return None
    rows = [_NOTHING]
    if len(lanes) > 1 or lanes[0].rows != every:
        rows = [torch.arange(plan.rows)[part.rows] for part in lanes]
    return Decode(
        [[part.start, part.stride, part.count, part.length] for part in lanes],
        rows,
        [_NOTHING if part.mask is None else part.mask for part in lanes],
        [shared[0].start, shared[0].stop] if shared else [],
    )


def _covers(parts: list[Part], total: int) -> Plan:
    """Put every part into the first cover that holds none of its rows."""
    covers: list[tuple[list[Part], np.ndarray]] = []
    for part in parts:
        rows = part.rows if isinstance(part.rows, slice) else part.rows.numpy()
        cover = next((one for one in covers if not one[1][rows].any()), None)
        if cover is None:
            cover = ([], np.zeros(total, bool))
            covers.append(cover)
        cover[0].append(part)
        cover[1][rows] = True
    assert np.logical_or.reduce([taken for _, taken in covers]).all()
    return Plan(tuple(tuple(members) for members, _ in covers), total)
