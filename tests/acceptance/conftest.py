"""Fixtures: one real server for the session, a client of it, and the same model through transformers."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.acceptance.process import Server, running
from tests.acceptance.reference import Reference


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The process behind `server`."""
    with running(tmp_path_factory.mktemp("server") / "log.txt") as server:
        yield server


@pytest.fixture(scope="session")
def server(started: Server) -> str:
    """Base URL of a server with the embedded model and default settings."""
    return started.url


@pytest.fixture(scope="session")
def http(server: str) -> Iterator[httpx.Client]:
    """A raw client of the server."""
    with httpx.Client(base_url=server, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def reference() -> Reference:
    """The embedded model, run by transformers itself."""
    return Reference()
