"""A machine that computes for a server on another one: replicas of the model, or a part of one. It has no HTTP.

Importing this module imports vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vllm.utils.network_utils import get_tcp_uri
from vllm.v1.engine.utils import CoreEngineProcManager
from vllm.v1.executor import Executor
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from engine.runners.vllm.arguments import engine_arguments
from engine.runners.vllm.places import reports_address
from engine.runners.vllm.start import configured, install, setup_for
from engine.settings import EngineSettings, SettingsError
from samplers.model_facts import NO_FACTS, ModelFacts

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def follow(model: str, settings: EngineSettings, arguments: Mapping[str, Any], tokens: ModelFacts = NO_FACTS) -> None:
    """Compute until one of the processes here ends, which none does by itself; SystemExit, as from a signal, ends them.

    The arguments are those of the server, but for the number of this machine. Raises SettingsError, or what vLLM raises
    for a model or arguments that it cannot use.
    """
    config = configured(engine_arguments(model, settings, arguments), headless=True)
    address = reports_address(config)
    if address is None:
        raise SettingsError("setting 'headless': the arguments leave nothing to other machines")
    install(config, setup_for(config, tokens, address))
    # a machine has whole replicas, or a part of one
    wait, end = _parts(config) if config.parallel_config.node_rank_within_dp > 0 else _replicas(config)
    try:
        wait()
    finally:
        end()


def _parts(config: VllmConfig) -> tuple[Callable[[], None], Callable[[], None]]:
    """Workers of an engine whose scheduler is elsewhere."""
    executor = MultiprocExecutor(config, monitor_workers=False)
    return lambda: executor.start_worker_monitor(inline=True), executor.shutdown


def _replicas(config: VllmConfig) -> tuple[Callable[[], None], Callable[[], None]]:
    """Engines with a scheduler each."""
    parallel = config.parallel_config
    engines = CoreEngineProcManager(
        local_engine_count=parallel.data_parallel_size_local,
        start_index=parallel.data_parallel_rank,
        local_start_index=0,
        vllm_config=config,
        local_client=False,
        handshake_address=get_tcp_uri(parallel.data_parallel_master_ip, parallel.data_parallel_rpc_port),
        executor_class=Executor.get_class(config),
        log_stats=False,
    )
    return engines.monitor_engine_liveness, engines.shutdown
