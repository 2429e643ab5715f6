"""Attention of a pure decode step inside TorchScript: no Python between the layers of the model.

The shapes such a step can have are those of `attention_cpu.Decode`; everything else is attended to from Python.
"""

from __future__ import annotations

from typing import List, Tuple  # noqa: UP035  TorchScript reads these

import torch
from torch import Tensor


def _lanes(
    keys: Tensor, values: Tensor, asked: Tensor, lane: List[int], mask: Tensor, scale: float  # noqa: UP006
) -> Tuple[Tensor, Tensor]:  # noqa: UP006
    heads, size = keys.size(0), keys.size(2)
    shape, strides = [lane[2], heads, lane[3], size], [lane[1] * size, keys.stride(0), size, 1]
    hidden = mask if mask.numel() > 0 else None
    return torch._scaled_dot_product_flash_attention_for_cpu(
        asked,
        keys.as_strided(shape, strides, lane[0] * size),
        values.as_strided(shape, strides, lane[0] * size),
        0.0,
        False,
        attn_mask=hidden,
        scale=scale,
    )


def _attend_decode(
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lanes: List[List[int]],  # noqa: UP006
    rows: List[Tensor],  # noqa: UP006
    masks: List[Tensor],  # noqa: UP006
    shared: List[int],  # noqa: UP006
    scale: float,
) -> Tensor:
    """Store K and V, attend, merge. Shapes as `Backend.attend`; the plan as `attention_cpu.Decode`."""
    keys.index_copy_(1, slots, key[0])
    values.index_copy_(1, slots, value[0])
    heads, size, count = keys.size(0), keys.size(2), query.size(2)
    group = query.size(1) // heads
    asked = query[0].transpose(0, 1).reshape(count, heads, group, size)
    if rows[0].numel() == 0:
        out, lse = _lanes(keys, values, asked, lanes[0], masks[0], scale)
    else:
        out = torch.empty_like(asked)
        lse = torch.empty([count, heads, group])
        for i in range(len(lanes)):
            one, weight = _lanes(keys, values, asked.index_select(0, rows[i]), lanes[i], masks[i], scale)
            out.index_copy_(0, rows[i], one)
            lse.index_copy_(0, rows[i], weight)
    if len(shared) > 0:
        first, length = shared[0], shared[1] - shared[0]
        common = asked.transpose(0, 1).reshape(1, heads, count * group, size)
        other, weight = torch._scaled_dot_product_flash_attention_for_cpu(
            common,
            keys.narrow(1, first, length).unsqueeze(0),
            values.narrow(1, first, length).unsqueeze(0),
            0.0,
            False,
            scale=scale,
        )
        other = other.reshape(heads, count, group, size).transpose(0, 1)
        weight = weight.reshape(heads, count, group).transpose(0, 1)
        out = torch.lerp(out.float(), other.float(), torch.sigmoid(weight - lse).unsqueeze(-1))
    return out.reshape(1, count, heads * group, size).to(query.dtype)


_lanes = torch.jit.script(_lanes)
attend_decode = torch.jit.script(_attend_decode)
