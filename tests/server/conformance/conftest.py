"""The checklist runs twice: over the runner without a model, and over the embedded model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.config import ServeConfig
from server.launch import build_state
from server.state import ServerState
from tests.server.live import PRESETS, Live, fake_state, start


def embedded_state() -> ServerState:
    """The embedded model in the torch runner, with the context and presets the tests expect."""
    return build_state(ServeConfig(max_model_len=512, presets=PRESETS, threads=1))  # two would wait for each other


@pytest.fixture(scope="session", params=["fake", pytest.param("embedded", marks=pytest.mark.slow)])
def shared_server(request: pytest.FixtureRequest) -> Iterator[Live]:
    live = start(fake_state() if request.param == "fake" else embedded_state())
    yield live
    live.stop()
