"""Attention of a step of short spans inside TorchScript: no Python between the layers of the model.

The shapes such a step can have are those of `cpu_plan.LanePlan`; everything else is attended to from Python.
"""

from __future__ import annotations

from typing import List, Tuple  # noqa: UP035  TorchScript reads these

import torch
from torch import Tensor


def _lanes(
    keys: Tensor, values: Tensor, asked: Tensor, part: List[int], mask: Tensor, scale: float  # noqa: UP006
) -> Tuple[Tensor, Tensor]:  # noqa: UP006
    """Attend to one part of a plan. asked: [count * height, Hq, D] -> (out as asked, lse [count * height, Hq] fp32)."""
    count, height, first, stride, length = part[0], part[1], part[2], part[3], part[4]
    heads, size = keys.size(0), keys.size(2)
    group = asked.size(1) // heads
    shape, strides = [count, heads, length, size], [stride * size, keys.stride(0), size, 1]
    hidden = mask if mask.numel() > 0 else None
    out, lse = torch._scaled_dot_product_flash_attention_for_cpu(
        asked.reshape(count, height, heads, group, size).transpose(1, 2).reshape(count, heads, height * group, size),
        keys.as_strided(shape, strides, first * size),
        values.as_strided(shape, strides, first * size),
        0.0,
        False,
        attn_mask=hidden,
        scale=scale,
    )
    out = out.reshape(count, heads, height, group, size).transpose(1, 2)
    lse = lse.reshape(count, heads, height, group).transpose(1, 2)
    return out.reshape(count * height, heads * group, size), lse.reshape(count * height, heads * group)


def _cover(
    keys: Tensor,
    values: Tensor,
    asked: Tensor,
    lanes: List[List[int]],  # noqa: UP006
    rows: List[Tensor],  # noqa: UP006
    masks: List[Tensor],  # noqa: UP006
    first: int,
    end: int,
    scale: float,
) -> Tuple[Tensor, Tensor]:  # noqa: UP006
    """Parts first .. end - 1 of a plan: (out [T, Hq, D], lse [T, Hq] fp32), without weight for rows they lack."""
    if rows[first].numel() == 0:
        return _lanes(keys, values, asked, lanes[first], masks[first], scale)
    out = torch.zeros_like(asked)
    lse = torch.full([asked.size(0), asked.size(1)], -3.4028234663852886e38)  # kernels.HIDDEN
    for i in range(first, end):
        one, weight = _lanes(keys, values, asked.index_select(0, rows[i]), lanes[i], masks[i], scale)
        out.index_copy_(0, rows[i], one)
        lse.index_copy_(0, rows[i], weight)
    return out, lse


def _attend_lanes(
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    covers: List[int],  # noqa: UP006
    lanes: List[List[int]],  # noqa: UP006
    rows: List[Tensor],  # noqa: UP006
    masks: List[Tensor],  # noqa: UP006
    scale: float,
) -> Tensor:
    """Store K and V, attend, merge. Shapes as `Backend.attend`; the plan as `cpu_plan.LanePlan`."""
    keys.index_copy_(1, slots, key[0])
    values.index_copy_(1, slots, value[0])
    asked = query[0].transpose(0, 1)  # [T, Hq, D]
    end = covers[0]
    out, lse = _cover(keys, values, asked, lanes, rows, masks, 0, end, scale)
    for more in covers[1:]:
        other, weight = _cover(keys, values, asked, lanes, rows, masks, end, end + more, scale)
        out = torch.lerp(out.float(), other.float(), torch.sigmoid(weight - lse).unsqueeze(-1))
        lse = torch.logaddexp(lse, weight)
        end += more
    return out.to(query.dtype).unsqueeze(0)


_lanes = torch.jit.script(_lanes)
_cover = torch.jit.script(_cover)
attend_lanes = torch.jit.script(_attend_lanes)
