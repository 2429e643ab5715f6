"""An engine over several machines, which are all this one: a server, and a process that computes for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.process import free_port
from tests.vllm.engine_process import INSTALLED, following, standing
from tests.vllm.test_parallel import agrees
from tests.vllm.test_server import refused

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed")]


def parts() -> Iterator[list[str]]:
    """One replica, half of every layer on each machine."""
    both = ["tensor_parallel_size=2", "nnodes=2", f"master_port={free_port()}"]
    yield from ([*both, f"node_rank={rank}"] for rank in range(2))


def replicas() -> Iterator[list[str]]:
    """A replica on each machine."""
    both = ["data_parallel_size=2", "data_parallel_size_local=1", f"data_parallel_rpc_port={free_port()}"]
    both.append("data_parallel_address=127.0.0.1")
    yield both
    yield [*both, "data_parallel_start_rank=1"]


@pytest.mark.parametrize("ways", [parts, replicas])
def test_tokens_are_those_of_one_machine(
    raw: httpx.Client, tmp_path: Path, ways: Callable[[], Iterator[list[str]]]
) -> None:
    first, second = ways()
    with (
        following(tmp_path / "second", *second),
        standing(tmp_path / "first", *first) as server,
        httpx.Client(base_url=server.url, timeout=60) as other,
    ):
        agrees(raw, other)
        error = refused(other, max_tokens=4, sampler="priority")
        assert error["code"] == "unsupported_by_runner"  # rows of logits come back through memory of one machine
