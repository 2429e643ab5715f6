"""vLLM's own speculation: what an operator may ask for, and what it is in the words of requests.

Imports nothing of vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.settings import SettingsError
from spec_decode.engine_wide import EngineWide
from spec_decode.request import SourceUse

if TYPE_CHECKING:
    from vllm.config import SpeculativeConfig, VllmConfig

FIELD = "speculative_config"  # of vLLM's engine arguments
_SOURCES = {"ngram": "prompt_lookup", "ngram_gpu": "prompt_lookup", "suffix": "suffix", "draft_model": "draft_model"}
_HEADS = "heads"  # every other method: small models that read the large one's hidden states
_REFUSED_METHODS = {
    "extract_hidden_states": "it drafts nothing",
    "custom_class": "what it drafts has no name in requests and answers",
}
_INVENTED = ("synthetic_acceptance_rates", "synthetic_acceptance_length")
_OTHERS_OUTPUTS = "suffix_decoding_max_cached_requests"


def speculative_arguments(given: Any) -> dict[str, Any]:
    """The engine arguments for a speculation that the operator describes. Raises SettingsError."""
    if not isinstance(given, Mapping):
        raise _refusal("must be a mapping, as vLLM's --speculative-config")
    wanted = dict(given)
    if wanted.get("rejection_sample_method") == "synthetic" or any(wanted.get(name) is not None for name in _INVENTED):
        raise _refusal("'synthetic' acceptance keeps drafts that the model would not have said: it is for benchmarks")
    if wanted.get("enable_adaptive_verification"):
        raise _refusal(
            "'enable_adaptive_verification' chooses among drafts after they are drawn, which changes the law"
        )
    if (method := wanted.get("method")) in _REFUSED_METHODS:
        raise _refusal(f"method '{method}': {_REFUSED_METHODS[method]}")
    if method == "suffix" and wanted.setdefault(_OTHERS_OUTPUTS, 0):
        raise _refusal(f"'{_OTHERS_OUTPUTS}' must be 0: drafts from other requests' outputs would tell of them")
    return {FIELD: wanted, "per_request_spec_decode_metrics": "detailed"}


def engine_wide(config: VllmConfig, longest: int) -> EngineWide | None:
    """How a configured engine speculates; None: not at all. longest: draft that is allowed. Raises SettingsError."""
    own = config.speculative_config
    if own is None:
        return None
    if own.method in _REFUSED_METHODS:
        raise _refusal(f"method '{own.method}': {_REFUSED_METHODS[own.method]}")
    if own.num_speculative_tokens > longest:
        tokens = f"{own.num_speculative_tokens} tokens"
        raise SettingsError(f"setting 'spec_max_len': {longest} is less than the {tokens} that '{FIELD}' drafts")
    if own.rejection_sample_method == "block" and not config.use_v2_model_runner:
        raise _refusal("rejection_sample_method 'block' would quietly be 'standard' with vLLM's first generation")
    method = str(own.method)
    name = _SOURCES.get(method, _HEADS)
    looks_up = name in ("prompt_lookup", "suffix")
    return EngineWide(
        source=_use(name, own),
        num_tokens=None if own.num_speculative_tokens_per_batch_size else own.num_speculative_tokens,
        rule="block" if own.rejection_sample_method == "block" else "token",
        draft_temperature=None if looks_up or own.draft_sample_method == "probabilistic" else 0.0,
    )


def _use(name: str, own: SpeculativeConfig) -> SourceUse:
    match name:
        case "prompt_lookup":
            found = {"min": own.prompt_lookup_min, "max": own.prompt_lookup_max, "pick": "first"}
            return SourceUse(name, found, "ngram")
        case "suffix":
            options = {
                "scope": "request",
                "factor": own.suffix_decoding_max_spec_factor,
                "offset": 0,
                "min_prob": own.suffix_decoding_min_token_prob,
                "max_depth": own.suffix_decoding_max_tree_depth,
            }
            return SourceUse(name, options, "suffix")
        case _:
            return SourceUse(name)


def _refusal(why: str) -> SettingsError:
    return SettingsError(f"setting 'vllm_args': '{FIELD}': {why}")
