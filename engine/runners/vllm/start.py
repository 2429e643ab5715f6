"""Starts vLLM's engine with the processor that its configuration calls for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM

from engine.runners.vllm.extras import Extras, ProcessorSetup
from engine.runners.vllm.statistics import Counters
from engine.settings import SettingsError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

log = logging.getLogger(__name__)
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


def reaches_elsewhere(config: VllmConfig) -> bool:
    """Whether some of the engine's processes may be on other machines, out of reach of a socket or of memory of this
    one. Ray may place them anywhere."""
    parallel = config.parallel_config
    local = parallel.data_parallel_size_local == parallel.data_parallel_size
    return parallel.use_ray or parallel.data_parallel_backend == "ray" or parallel.nnodes > 1 or not local


def started(config: VllmConfig, setup: ProcessorSetup, counters: Counters) -> AsyncLLM:
    """The running engine, about a minute later."""
    if reaches_elsewhere(config):
        log.warning(
            "vLLM may use other machines: a choice that its samplers cannot go on with ends the engine there; programs "
            "are refused"
        )
    config.model_config.logits_processors = [ADAPTERS[config.use_v2_model_runner]]
    config.additional_config = Extras(config.additional_config, setup)
    return AsyncLLM.from_vllm_config(config, stat_loggers=[counters.logger], disable_log_stats=True)
