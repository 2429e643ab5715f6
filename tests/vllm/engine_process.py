"""A server over vLLM with the embedded model, small enough for two cores."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from server.config import ServeConfig
from server.launch import build_state
from tests.acceptance.process import EXIT_S, Server, command, environment
from tests.server.live import PRESETS, Live, start

INSTALLED = find_spec("vllm") is not None
KV_BYTES = 2**28  # given, since a share of a machine that others use too may be less than what a process takes
ARGUMENTS = {"enforce_eager": True}
START_S = 400.0  # of a server with several processes, where two cores do everything
# the same, for servers in processes of their own
FLAGS = (
    *("--runner", "vllm", "--max-seqs", "16", "--page-size", "32", "--max-model-len", "512", "--no-replay"),
    *("--kv-bytes", str(KV_BYTES)),
)
VARIABLES = {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def config(**options: Any) -> ServeConfig:
    """Pages of 32 tokens, so that short prompts share some."""
    # nothing is compiled, which takes longer than the tests
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    usual: dict[str, Any] = {"max_seqs": 16, "page_size": 32, "kv_bytes": KV_BYTES, "vllm_args": ARGUMENTS}
    return ServeConfig(runner="vllm", **(usual | options))


@contextmanager
def standing(log: Path, *arguments: str, **variables: str) -> Iterator[Server]:
    """A server in a process of its own, which has to leave with status 0. arguments: of vLLM's engine, NAME=VALUE."""
    server = Server(log, *FLAGS, *_flags(*arguments), **VARIABLES, **variables)
    try:
        server.wait_ready(START_S)
        yield server
        server.terminate()
        assert server.exit_code() == 0, server.output()
    finally:
        end(server.process)


@contextmanager
def following(log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """What runs on another machine, on this one; it has to leave with status 0 as well."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command("serve", "--headless", *FLAGS, *_flags(*arguments)),
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(**VARIABLES),
        )
    try:
        yield process
        assert process.poll() is None, log.read_text()
        process.terminate()
        assert process.wait(EXIT_S) == 0, log.read_text()
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Whatever has happened, nothing of it stays."""
    if process.poll() is None:
        process.kill()
        process.wait()


def _flags(*arguments: str) -> list[str]:
    return [text for one in arguments for text in ("--vllm-arg", one)]


def serve(**options: Any) -> Live:
    """A server that `stop` ends, its engine included."""
    live = start(build_state(config(**({"max_model_len": 512, "presets": PRESETS} | options))))
    stop_http = live.stop

    def stop() -> None:
        asyncio.run(live.state.close(0.0))
        stop_http()

    live.stop = stop
    return live
