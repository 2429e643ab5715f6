"""Tiny random models of real architectures: weights are drawn, nothing is downloaded."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 64
_COMMON = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": dict(sliding_window=7),
    "qwen3": {},
    "gemma2": dict(sliding_window=7, query_pre_attn_scalar=16),
    "gemma3_text": dict(sliding_window=7),
    "phi3": {},
    "gpt_oss": dict(sliding_window=7, num_local_experts=4, num_experts_per_tok=2),
    "llama4_text": dict(
        attention_chunk_size=8, num_local_experts=2, intermediate_size_mlp=48, no_rope_layers=[1, 1, 1, 0]
    ),
    "deepseek_v3": dict(
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
    ),
}


def tiny_model(kind: str, seed: int = 0, **changes: object) -> nn.Module:
    """An fp32 model of 4 layers whose logits are of size a few, so that 1e-4 means something."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**_COMMON, **FAMILIES.get(kind, {}), **changes})
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.25)
            elif "sink" in name:
                parameter.normal_(0, 1)
    return model
