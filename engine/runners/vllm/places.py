"""Which machines an engine is spread over: what its arguments say about this one, and where the server is.

Imports nothing of vLLM before there is a configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.settings import SettingsError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_OWN_SERVERS = ("data_parallel_external_lb", "data_parallel_hybrid_lb", "data_parallel_rank")


def check_places(arguments: Mapping[str, Any], headless: bool) -> None:
    """Raises SettingsError for a way to spread an engine that this server cannot start, or that would wait for ever.

    arguments: of vLLM's engine; headless: the server is on another machine.
    """
    if arguments.get("data_parallel_multi_port_external_lb"):
        raise SettingsError(
            "setting 'vllm_args': 'data_parallel_multi_port_external_lb' is for vLLM's own server; "
            "start one of ours for each 'data_parallel_rank'"
        )
    if arguments.get("distributed_executor_backend") == "external_launcher":
        raise SettingsError("setting 'vllm_args': with 'external_launcher' nothing is left for the server to start")
    follows, several = bool(arguments.get("node_rank")), int(arguments.get("nnodes", 1)) > 1
    starts_at = arguments.get("data_parallel_start_rank")
    if follows and not several:
        raise SettingsError("setting 'vllm_args': 'node_rank' needs 'nnodes', the number of machines")
    if starts_at is not None and arguments.get("data_parallel_size_local") is None:
        raise SettingsError("setting 'vllm_args': 'data_parallel_start_rank' needs 'data_parallel_size_local'")
    if several:
        for name in _OWN_SERVERS:
            if (value := arguments.get(name)) is not None and value is not False:
                raise SettingsError(
                    f"setting 'vllm_args': '{name}' gives every machine a server, 'nnodes' only the first"
                )
    if follows and not headless:
        raise SettingsError("setting 'vllm_args': a machine with 'node_rank' above 0 serves no HTTP: add --headless")
    if not headless:
        return
    if "ray" in (arguments.get("distributed_executor_backend"), arguments.get("data_parallel_backend")):
        raise SettingsError("setting 'headless': Ray starts what runs on other machines")
    if not follows and not starts_at:
        raise SettingsError(
            "setting 'headless': say which machine this is, as 'node_rank' or 'data_parallel_start_rank'"
        )


def reports_address(config: VllmConfig) -> tuple[str, int] | None:
    """Where the server takes reports from other machines, by name and port; port 0: whichever is free, as everybody is
    told. None: there are no other machines."""
    parallel = config.parallel_config
    if parallel.use_ray or parallel.data_parallel_backend == "ray":
        from vllm.utils.network_utils import get_ip

        return get_ip(), 0
    port = parallel.data_parallel_rpc_port + 1
    if parallel.nnodes > 1:
        return parallel.master_addr, port
    if not parallel.local_engines_only and parallel.data_parallel_size_local < parallel.data_parallel_size:
        return parallel.data_parallel_master_ip, port
    return None
