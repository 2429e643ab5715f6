"""Starts vLLM's engine with the processor that its configuration calls for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.triton_utils import HAS_TRITON
from vllm.v1.engine.async_llm import AsyncLLM

from engine.runners.vllm.extras import Extras, ProcessorSetup
from engine.runners.vllm.statistics import Counters
from engine.settings import SettingsError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

ADAPTERS = {  # by whether vLLM's second generation of processors is live
    False: "engine.runners.vllm.v1_adapter:V1Adapter",
    True: "engine.runners.vllm.v2_adapter:V2Adapter",
}
_CPU_MEMORY = 0.3  # share of the machine's memory: the usual 0.92 is rarely free, and vLLM then refuses to start


def configured(arguments: Mapping[str, Any]) -> VllmConfig:
    """vLLM's configuration. Raises SettingsError for arguments that it does not have, and whatever it raises itself."""
    if unknown := arguments.keys() - AsyncEngineArgs.__dataclass_fields__.keys():
        raise SettingsError(f"setting 'vllm_args': vLLM's engine has no argument '{min(unknown)}'")
    usual = {"gpu_memory_utilization": _CPU_MEMORY, "dtype": "float32"} if current_platform.is_cpu() else {}
    return AsyncEngineArgs(**{**usual, **arguments}).create_engine_config()


def has_processor(config: VllmConfig) -> bool:
    """Whether samplers of ours can draw. vLLM's first generation refuses processors while it speculates."""
    return config.use_v2_model_runner or config.speculative_config is None


def spoils_sampling(config: VllmConfig) -> bool:
    """Whether vLLM speculates with kernels that read temperature, top-k and top-p of sampled requests from memory that
    nobody has written: its kernels for CPUs fill a copy of what is read (`_expand_kernel_impl`, vLLM 0.32)."""
    return config.speculative_config is not None and current_platform.is_cpu() and not HAS_TRITON


def started(config: VllmConfig, setup: ProcessorSetup, counters: Counters) -> AsyncLLM:
    """The running engine, about a minute later. Where it has no place for a processor, nothing is drawn by ours."""
    config.model_config.logits_processors = [ADAPTERS[config.use_v2_model_runner]] if has_processor(config) else None
    config.additional_config = Extras(config.additional_config, setup)
    return AsyncLLM.from_vllm_config(config, stat_loggers=[counters.logger], disable_log_stats=True)
