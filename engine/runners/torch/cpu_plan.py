"""What a CPU step computes in each layer: which rows attend to which stretches of slots, and what is hidden from them.

A plan is made once per step and kind of layer. Its parts:
  Lanes   short spans whose keys start at regularly spaced slots: one call over a strided view of the pool.
          Rows of neighbouring spans over one run of slots (a common prefix, the context of a prompt chunk): one lane
  Local   the rows of a prompt chunk among themselves
A row may occur in several parts, whose results are merged. Plans without local parts also exist in TorchScript's types.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.runners.torch.kernels import HIDDEN
from engine.runners.torch.lanes import Lane, regular_lanes
from engine.runners.torch.layers import LayerSpec
from engine.runners.torch.step import Run, Span, Step

LANE_ROWS = 65  # spans of up to so many rows are lanes: the pending token and a full draft tree
_LANE_MASK = 2**16  # elements; a lane with a larger mask is cut behind its context, which mostly needs none
_NOTHING = torch.empty(0)


@dataclass(frozen=True)
class Lanes:
    """`count` stretches of slots, each attended to by `height` rows."""

    rows: Tensor | slice  # [count * height] rows of T, lane by lane
    count: int
    height: int
    start: int  # first slot of lane 0
    stride: int  # slots from lane to lane
    length: int  # slots of the longest lane
    mask: Tensor | None  # [count, 1, 1 or height * G, length] fp32; also hides what lies beyond a lane's own length


@dataclass(frozen=True)
class Local:
    rows: slice
    mask: Tensor | None  # [rows, rows] fp32; None: causal


Part = Lanes | Local
Cover = tuple[Part, ...]  # parts no two of which hold the same row


@dataclass(frozen=True)
class LanePlan:
    """A plan of nothing but lanes in TorchScript's types, cover by cover."""

    covers: list[int]  # parts in each
    lanes: list[list[int]]  # count, height, start, stride, length of each part
    rows: list[Tensor]  # rows of T of each part; an empty tensor: every row in order
    masks: list[Tensor]  # as `Lanes.mask`; an empty tensor: nothing is hidden


@dataclass(frozen=True)
class Plan:
    """Covers are attended to one by one and merged; most steps have one or two."""

    covers: tuple[Cover, ...]
    rows: int

    def as_lanes(self) -> LanePlan:
        """Of a step of short spans."""
        lanes = [part for cover in self.covers for part in cover if isinstance(part, Lanes)]
        assert len(lanes) == sum(map(len, self.covers))
        every = slice(0, self.rows)
        return LanePlan(
            [len(cover) for cover in self.covers],
            [[part.count, part.height, part.start, part.stride, part.length] for part in lanes],
            [_NOTHING if part.rows == every else torch.arange(self.rows)[part.rows] for part in lanes],
            [_NOTHING if part.mask is None else part.mask for part in lanes],
        )


def make_plan(step: Step, spec: LayerSpec, num_slots: int, lane_rows: int = LANE_ROWS) -> Plan:
    """The plan of `step` for layers like `spec`, over a pool of `num_slots`."""
    parts: list[Part] = []
    levels: list[list[Lane]] = []  # a row's k-th lane goes to level k, so a call never holds a row twice
    shared = _shared_lengths(step, spec)
    for group in step.groups:
        first, last = step.spans[group.first], step.spans[group.first + group.count - 1]
        if shared[group.first]:
            rows = slice(first.start, last.stop)
            parts += [_lane(rows, a, b, None) for a, b, _ in _trim(first.runs, 0, group.length)]
    for index, span in enumerate(step.spans):
        if span.count > lane_rows:
            parts += _block_parts(span, spec, shared[index])
            continue
        low = max(shared[index], _lowest(span, spec))
        for level, (a, b, token) in enumerate(_stretches(span, spec, low)):
            if level == len(levels):
                levels.append([])
            levels[level].append(Lane(span.start, a, b - a, span.count, token))
    spans = {span.start: span for span in step.spans}
    for lanes in levels:
        parts += [_lanes(batch, spans, spec) for batch in regular_lanes(tuple(lanes), num_slots)]
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


def _lowest(span: Span, spec: LayerSpec) -> int:
    """The first token that any row sees. Behind the context tokens of a tree are in no order of position."""
    return min(spec.first_visible(span.first_position), span.context)


def _trim(runs: tuple[Run, ...], low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """(first slot, end slot, first token) of the pieces that hold tokens [low, high)."""
    at = 0
    for start, stop in runs:
        a, b = max(low, at), min(high, at + stop - start)
        if a < b:
            yield start + a - at, start + b - at, a
        at += stop - start


def _stretches(span: Span, spec: LayerSpec, low: int) -> Iterator[tuple[int, int, int]]:
    """As `_trim`: the lanes of a short span, whose rows see nothing before token `low` of the context."""
    if span.is_decode or span.count * spec.group_size * (span.length - low) <= _LANE_MASK:
        yield from _trim(span.runs, low, span.length)
    else:
        yield from _trim(span.runs, low, span.context)
        yield from _trim(span.runs, span.context, span.length)


def _visible(span: Span, spec: LayerSpec, token: int, length: int) -> np.ndarray | None:
    """[count, length] bool: what the rows see of the span's tokens from `token` on; None: everything."""
    context = min(length, max(0, span.context - token))  # columns of the context
    hides = spec.first_visible(span.last_position) > min(token, span.context)
    if span.is_decode or (context == length and not hides):
        return None
    behind = slice(max(0, token - span.context), token + length - span.context)
    seen = np.ones((span.count, length), bool)
    if context < length:
        seen[:, context:] = span.seen[:, behind]
    if hides:
        positions = token + np.arange(length)
        if context < length:
            positions[context:] = span.key_positions[behind]
        seen &= positions >= np.array([spec.first_visible(at) for at in span.positions.tolist()])[:, None]
    return seen


def _block_parts(span: Span, spec: LayerSpec, low: int) -> Iterator[Part]:
    """Context and local part of a prompt chunk, or of a tree too large for a lane."""
    rows = slice(span.start, span.stop)
    own = span.length - span.count  # the first token of this step
    for a, b, token in _trim(span.runs, max(low, _lowest(span, spec)), own):
        seen = _visible(span, spec, token, b - a)
        yield _lane(rows, a, b, None if seen is None else mask_of(seen, spec.group_size)[None, None])
    if span.tree is None and spec.first_visible(span.last_position) <= span.context:
        yield Local(rows, None)
    else:
        seen = _visible(span, spec, own, span.count)
        yield Local(rows, None if seen is None else mask_of(seen))


def mask_of(seen: np.ndarray, group: int = 1) -> Tensor:
    """seen: [..., rows, keys] -> [..., rows * group, keys] fp32."""
    return torch.from_numpy(np.where(seen, np.float32(0), np.float32(HIDDEN)).repeat(group, -2))


def _lane(rows: slice, start: int, stop: int, mask: Tensor | None) -> Lanes:
    """All these rows over one run of slots."""
    return Lanes(rows, 1, rows.stop - rows.start, start, 0, stop - start, mask)


def _lanes(batch: tuple[Lane, ...], spans: dict[int, Span], spec: LayerSpec) -> Lanes:
    """`spans` by their first row."""
    count, height, length = len(batch), batch[0].height, max(lane.length for lane in batch)
    seen = [_visible(spans[lane.row], spec, lane.token, lane.length) for lane in batch]
    mask = None
    if any(one is not None for one in seen) or any(lane.length < length for lane in batch):
        rows = 1 if all(one is None for one in seen) else height
        visible = np.zeros((count, rows, length), bool)
        for held, lane, one in zip(visible, batch, seen, strict=True):
            held[:, : lane.length] = True if one is None else one
        mask = mask_of(visible, spec.group_size if rows > 1 else 1)[:, None]
    every = [row for lane in batch for row in range(lane.row, lane.row + height)]
    in_order = every == list(range(every[0], every[0] + len(every)))
    return Lanes(
        slice(every[0], every[0] + len(every)) if in_order else torch.tensor(every),
        count,
        height,
        batch[0].start,
        batch[1].start - batch[0].start if count > 1 else 0,
        length,
        mask,
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
