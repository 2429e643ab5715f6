"""Starts vLLM's engine with the processor that its configuration calls for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.triton_utils import HAS_TRITON
from vllm.v1.engine.async_llm import AsyncLLM

from engine.runners.vllm.extras import Extras, ProcessorSetup
from engine.runners.vllm.places import check_places
from engine.runners.vllm.reports import Address
from engine.runners.vllm.row_inbox import RowInbox
from engine.runners.vllm.statistics import Counters
from engine.settings import SettingsError
from samplers.model_facts import ModelFacts

if TYPE_CHECKING:
    from vllm.config import VllmConfig

ADAPTERS = {  # by whether vLLM's second generation of processors is live
    False: "engine.runners.vllm.v1_adapter:V1Adapter",
    True: "engine.runners.vllm.v2_adapter:V2Adapter",
}
_SLOTS_PER_SEQUENCE = 2  # the states of preempted choices are kept for a while
_CPU_MEMORY = 0.3  # share of the machine's memory: the usual 0.92 is rarely free, and vLLM then refuses to start


def configured(arguments: Mapping[str, Any], headless: bool = False) -> VllmConfig:
    """vLLM's configuration. headless: of a machine whose server is elsewhere. Raises SettingsError for arguments that
    vLLM does not have, or that do not fit together, and whatever it raises itself."""
    check_places(arguments, headless)
    public = {name for name in AsyncEngineArgs.__dataclass_fields__ if not name.startswith("_")}
    if unknown := arguments.keys() - public:
        raise SettingsError(f"setting 'vllm_args': vLLM's engine has no argument '{min(unknown)}'")
    usual = {"gpu_memory_utilization": _CPU_MEMORY, "dtype": "float32"} if current_platform.is_cpu() else {}
    config = AsyncEngineArgs(**{**usual, **arguments}).create_engine_config(headless=headless)
    staged = config.parallel_config.pipeline_parallel_size > 1
    if current_platform.is_cpu() and staged and config.model_config.enforce_eager:
        raise SettingsError("setting 'replay': vLLM's CPU build cannot do without it when pipeline_parallel_size > 1")
    return config


def vocabulary(config: VllmConfig, tokens: ModelFacts) -> int:
    """Ids below this are tokens; the model's rows may be longer."""
    entries = config.model_config.get_vocab_size()
    return entries if tokens.pieces is None else min(entries, len(tokens.pieces))


def setup_for(
    config: VllmConfig, tokens: ModelFacts, reports: Address, inbox: RowInbox | None = None
) -> ProcessorSetup:
    """What the processor is told, the same on every machine. tokens: what the tokenizer knows; inbox: where the rows of
    programs go, on one machine only."""
    slots = _SLOTS_PER_SEQUENCE * config.scheduler_config.max_num_seqs
    rows = None if inbox is None else inbox.path
    row_slots = 0 if inbox is None else inbox.slots
    return ProcessorSetup(
        ModelFacts(tokens.pieces, tokens.special_ids), vocabulary(config, tokens), slots, reports, rows, row_slots
    )


def has_processor(config: VllmConfig) -> bool:
    """Whether samplers of ours can draw. vLLM's first generation refuses processors while it speculates."""
    return config.use_v2_model_runner or config.speculative_config is None


def spoils_sampling(config: VllmConfig) -> bool:
    """Whether vLLM speculates with kernels that read temperature, top-k and top-p of sampled requests from memory that
    nobody has written: its kernels for CPUs fill a copy of what is read (`_expand_kernel_impl`, vLLM 0.32)."""
    return config.speculative_config is not None and current_platform.is_cpu() and not HAS_TRITON


def install(config: VllmConfig, setup: ProcessorSetup) -> None:
    """Have the engine's processes use our processor. Where there is no place for it, nothing is drawn by ours."""
    config.model_config.logits_processors = [ADAPTERS[config.use_v2_model_runner]] if has_processor(config) else None
    config.additional_config = Extras(config.additional_config, setup)


def started(config: VllmConfig, setup: ProcessorSetup, counters: Counters) -> AsyncLLM:
    """The running engine, about a minute later."""
    install(config, setup)
    return AsyncLLM.from_vllm_config(config, stat_loggers=[counters.logger], disable_log_stats=True)
