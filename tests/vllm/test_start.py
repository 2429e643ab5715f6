"""Where vLLM's processes will be, as its configuration says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.config import ParallelConfig

from engine.runners.vllm.start import reaches_elsewhere


@pytest.mark.parametrize(
    ("given", "elsewhere"),
    [
        ({}, False),
        ({"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}, False),
        ({"data_parallel_size": 2, "data_parallel_size_local": 2, "distributed_executor_backend": "mp"}, False),
        ({"data_parallel_size": 2, "data_parallel_size_local": 1, "distributed_executor_backend": "mp"}, True),
        ({"data_parallel_size": 2, "data_parallel_size_local": 2, "data_parallel_backend": "ray"}, True),
        ({"distributed_executor_backend": "ray"}, True),
        ({"tensor_parallel_size": 2, "nnodes": 2, "distributed_executor_backend": "mp"}, True),
    ],
    ids=str,
)
def test_processes_that_may_be_on_other_machines(given: dict[str, Any], elsewhere: bool) -> None:
    usual = {"nnodes": 1, "data_parallel_size": 1, "data_parallel_size_local": 1, "data_parallel_backend": "mp"}
    assert usual.keys() <= ParallelConfig.__dataclass_fields__.keys() and hasattr(ParallelConfig, "use_ray")
    ray = given.get("distributed_executor_backend") == "ray"
    config: Any = SimpleNamespace(parallel_config=SimpleNamespace(**{**usual, **given, "use_ray": ray}))
    assert reaches_elsewhere(config) is elsewhere
