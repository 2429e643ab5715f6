"""The arguments of vLLM's engine: from our settings, and as the operator gives them by vLLM's own names.

Imports nothing of vLLM.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from engine.runners.vllm.speculation import FIELD, speculative_arguments
from engine.settings import EngineSettings, SettingsError

_OURS = {  # setting -> vLLM's name of it
    "dtype": "dtype",
    "max_model_len": "max_model_len",
    "max_seqs": "max_num_seqs",
    "max_batch_tokens": "max_num_batched_tokens",
    "chunk_tokens": "long_prefill_token_threshold",
    "kv_bytes": "kv_cache_memory_bytes",
    "page_size": "block_size",
}
_REFUSED = {  # vLLM's name -> why
    "model": "it is the setting 'model'",
    "tokenizer": "the server tokenizes itself",
    "skip_tokenizer_init": "the server tokenizes itself",
    "served_model_name": "it is the setting 'served_name'",
    "logits_processors": "samplers are how requests name them",
    "logits_processor_pattern": "samplers are how requests name them",
    "additional_config": "the runner needs it for its samplers",
    "enable_batch_sharded_sampling": "the samplers of a choice live in one process",
    "logprobs_mode": "log-probabilities are the model's own",
    "per_request_spec_decode_metrics": "answers say what speculation has done",
    "spec_method": f"it is a part of '{FIELD}'",
    "spec_model": f"it is a part of '{FIELD}'",
    "spec_tokens": f"it is a part of '{FIELD}'",
    "max_num_queued_reqs": "it is the setting 'max_queued_requests'",
    "max_num_queued_tokens": "it is the setting 'max_queued_tokens'",
    "disable_log_stats": "the server counts itself",
}
_MEANINGLESS = ("device", "threads")  # settings that vLLM decides by its build and by variables of its own
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # nothing is reported to anybody
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # the server has threads by then
}


def engine_arguments(model: str, settings: EngineSettings, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `AsyncEngineArgs` for a folder or hub id. Raises SettingsError."""
    settings.check()
    for name in _MEANINGLESS:
        if getattr(settings, name) is not None:
            raise SettingsError(f"setting '{name}' belongs to the torch runner: vLLM's build and variables decide it")
    for name in given:
        if name in _REFUSED:
            raise SettingsError(f"setting 'vllm_args': '{name}' cannot be given: {_REFUSED[name]}")
    own = {theirs: value for ours, theirs in _OURS.items() if (value := getattr(settings, ours)) is not None}
    for ours, theirs in _OURS.items():
        if theirs in own and theirs in given:
            raise SettingsError(f"setting 'vllm_args': '{theirs}' is the setting '{ours}', which is given too")
    if not settings.replay:
        own["enforce_eager"] = True
    fixed = {"model": model, "skip_tokenizer_init": True, "disable_log_stats": True}
    usual = {"scheduling_policy": "priority", "max_logprobs": -1, "enable_prefix_caching": True}
    drafting = speculative_arguments(given[FIELD]) if given.get(FIELD) is not None else {}
    return {**usual, **own, **given, **drafting, **fixed}


def set_environment() -> None:
    """vLLM's variables that have not been set; before it is imported, and for the processes it starts."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
