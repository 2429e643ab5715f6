"""A server in a thread of this process, on a real socket, so that real clients can connect and disconnect."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from samplers.model_facts import ModelFacts
from server.app import create_app
from server.state import Limits, ServedModel, ServerState
from server.text.codec import TextCodec
from tests.server.fake_runner import FakeRunner

TINY = Path(__file__).parents[2] / "models" / "drafthouse-tiny"
PRESETS = {
    "greedy": {"temperature": 0},
    "narrow": {"temperature": 0.7, "top_p": 0.3},
    "noisy": {"draw": "gumbel", "temperature": 0.9},
    "broad": {"xtc_threshold": 0.3},
    "cool": {"sampler": [{"name": "temperature", "temperature": 0.5}, "iid"], "max_tokens": 7},
}


@dataclass
class Live:
    """A running server."""

    url: str
    state: ServerState
    loop: asyncio.AbstractEventLoop
    stop: Any

    @property
    def runner(self) -> Any:
        return self.state.models[0].runner

    @property
    def codec(self) -> TextCodec:
        return self.state.models[0].tokenizer

    def wait(self, condition: Any, seconds: float = 5.0) -> None:
        """Until the condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "timed out"
            time.sleep(0.005)


def fake_state(**options: Any) -> ServerState:
    """The state of a server whose two models are hashes."""
    codec = TextCodec.load(TINY)
    eos = frozenset({codec.eos_token_id})
    models = [
        ServedModel(
            id=name,
            runner=FakeRunner(4096, 512, eos, ModelFacts(codec.pieces(), codec.special_ids)),
            tokenizer=codec,
            created=1_700_000_000,
            presets=PRESETS if name == "drafthouse-tiny" else {},
        )
        for name in ("drafthouse-tiny", "acme/hash-b")
    ]
    return ServerState(models, **{"limits": Limits(body_bytes=2**20), **options})


def start(state: ServerState) -> Live:
    """Serve a state until `stop` is called."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(state), log_level="warning", lifespan="off", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    ready, box = threading.Event(), {}

    async def main() -> None:
        box["loop"] = asyncio.get_running_loop()
        ready.set()
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    ready.wait()
    while not server.started:
        time.sleep(0.005)

    def stop() -> None:
        server.should_exit = True
        thread.join(10)

    host, port = listener.getsockname()
    return Live(f"http://{host}:{port}", state, box["loop"], stop)
