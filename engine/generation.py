"""What a model's own files say about generating with it, for every runner."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig, PretrainedConfig

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def eos_token_ids(generation: GenerationConfig, config: PretrainedConfig) -> frozenset[int]:
    """Every id that ends a text. config: of the decoder itself."""
    eos = generation.eos_token_id
    if eos is None:
        eos = getattr(config, "eos_token_id", None)
    return frozenset(eos if isinstance(eos, (list, tuple)) else [] if eos is None else [eos])


def generation_defaults(generation: GenerationConfig) -> dict[str, Any]:
    """The sampling fields that are set."""
    wanted = _SAMPLING if generation.do_sample else ()
    return {name: value for name in wanted if (value := getattr(generation, name, None)) is not None}
