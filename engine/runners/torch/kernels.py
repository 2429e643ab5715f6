"""Attention over one set of keys, returning the log-sum-exp beside the output, and merging of such parts.

Pure functions of tensors. For two disjoint key sets with (o1, l1) and (o2, l2) the softmax over their union is
o1 exp(l1 - L) + o2 exp(l2 - L) with L = logaddexp(l1, l2) (Dao et al., FlashAttention, section 3.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

HIDDEN = torch.finfo(torch.float32).min  # mask value: -inf would make a fully hidden row's log-sum-exp 0, not small
_flash_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def segment_cpu(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Fused CPU kernel. query: [N, H, Q, D]; key, value: [N, Hkv, K, D]; mask: broadcastable to [N, H, Q, K].

    Returns (out [N, H, Q, D], lse [N, H, Q] fp32).
    """
    # an empty operand kills the process with SIGFPE inside the kernel
    assert query.shape[2] > 0 and key.shape[2] > 0
    return _flash_cpu(query, key, value, 0.0, False, attn_mask=mask, scale=scale)


def causal_cpu(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Fused CPU kernel of a square causal block, Q = K."""
    assert query.shape[2] == key.shape[2] > 0
    return _flash_cpu(query, key, value, 0.0, True, scale=scale)


def segment_plain(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """The formula itself: any device and dtype, soft-capped scores, fp32 inside. Shapes as `segment_cpu`."""
    repeat = query.shape[1] // key.shape[1]
    if repeat > 1:
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scores = torch.matmul(query.float(), key.float().transpose(-1, -2)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    lse = torch.logsumexp(scores, -1)
    return torch.matmul(torch.exp(scores - lse.unsqueeze(-1)), value.float()).to(query.dtype), lse


def merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the union of two key sets, in fp32. out, other: [..., D]; lse, other_lse: [...] fp32."""
    weight = torch.sigmoid(other_lse - lse).unsqueeze(-1)  # exp(other_lse - L)
    return torch.lerp(out.float(), other.float(), weight), torch.logaddexp(lse, other_lse)


def apply_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Renormalise for a sink logit per head. out: [T, H, D]; lse: [T, H]; sinks: [H]."""
    return out * torch.sigmoid(lse - sinks).unsqueeze(-1).to(out.dtype)
