"""The checklist runs over the runner without a model, over the embedded model in the torch runner, and where vLLM is
installed over the same model there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest

from server.config import ServeConfig
from server.launch import build_state
from tests.server.live import PRESETS, Live, fake_state, start
from tests.vllm.differences import reason_to_differ
from tests.vllm.engine_process import INSTALLED, serve


def embedded() -> Live:
    """The embedded model in the torch runner, with the context and presets the tests expect."""
    return start(
        build_state(ServeConfig(max_model_len=512, presets=PRESETS, threads=1))
    )  # two would wait for each other


SERVERS: Mapping[str, Callable[[], Live]] = {"fake": lambda: start(fake_state()), "embedded": embedded, "vllm": serve}
RUNNERS = ["fake", "embedded", *(["vllm"] if INSTALLED else [])]


@pytest.fixture(
    scope="session", params=[pytest.param(name, marks=[pytest.mark.slow] * (name != "fake")) for name in RUNNERS]
)
def shared_server(request: pytest.FixtureRequest) -> Iterator[Live]:
    live = SERVERS[request.param]()
    yield live
    live.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is different on vLLM is skipped there, with the reason."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if params.get("shared_server") == "vllm" and (reason := reason_to_differ(item.nodeid)):
            item.add_marker(pytest.mark.skip(reason=reason))
