"""Fixtures: one server for all tests of the wire, the official client in strict mode, and a raw client."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.server.live import Live, fake_state, start


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Live]:
    live = start(fake_state())
    yield live
    live.stop()


@pytest.fixture
def live(shared_server: Live) -> Iterator[Live]:
    yield shared_server
    if hasattr(shared_server.runner, "reset"):
        shared_server.runner.reset()


@pytest.fixture
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{live.url}/v1", api_key="unused", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture
def raw(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=30) as client:
        yield client
