"""A server over vLLM with the embedded model, small enough for two cores."""

from __future__ import annotations

import asyncio
import os
from importlib.util import find_spec
from typing import Any

from server.config import ServeConfig
from server.launch import build_state
from tests.server.live import PRESETS, Live, start

INSTALLED = find_spec("vllm") is not None
ARGUMENTS = {"gpu_memory_utilization": 0.08, "enforce_eager": True}


def config(**options: Any) -> ServeConfig:
    """Pages of 32 tokens, so that short prompts share some."""
    # nothing is compiled, which takes longer than the tests
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    usual: dict[str, Any] = {"runner": "vllm", "max_seqs": 16, "page_size": 32, "vllm_args": ARGUMENTS}
    return ServeConfig(**(usual | options))


def serve(**options: Any) -> Live:
    """A server that `stop` ends, its engine included."""
    live = start(build_state(config(**({"max_model_len": 512, "presets": PRESETS} | options))))
    stop_http = live.stop

    def stop() -> None:
        asyncio.run(live.state.close(0.0))
        stop_http()

    live.stop = stop
    return live
