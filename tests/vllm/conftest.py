"""One server over vLLM for all tests that need its engine."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from server.config import ServeConfig
from server.launch import build_state
from tests.server.live import Live, start
from tests.vllm.engine_process import INSTALLED, serve


@pytest.fixture(scope="session")
def vllm_server() -> Iterator[Live]:
    if not INSTALLED:
        pytest.skip("vLLM is not installed")
    live = serve()
    yield live
    live.stop()


@pytest.fixture
def raw(vllm_server: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=vllm_server.url, timeout=60) as raw:
        yield raw


@pytest.fixture(scope="session")
def torch_raw() -> Iterator[httpx.Client]:
    """The same model in the torch runner."""
    live = start(build_state(ServeConfig(max_model_len=512, threads=1, spec_max_len=0)))
    with httpx.Client(base_url=live.url, timeout=60) as raw:
        yield raw
    live.stop()
