"""The engine's process is killed: everybody hears of it, and a supervisor would."""

from __future__ import annotations

import time
from typing import Any

import httpx
import psutil
import pytest

from server.launch import build_state
from tests.server.live import start
from tests.vllm.engine_process import INSTALLED, config

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed")]


def test_a_dead_engine_ends_streams_and_health() -> None:
    deaths: list[BaseException] = []
    before = set(psutil.Process().children(recursive=True))
    live = start(build_state(config(max_model_len=512), deaths.append))
    engines = set(psutil.Process().children(recursive=True)) - before
    body: dict[str, Any] = {"model": "drafthouse-tiny", "prompt": "def", "stream": True, "ignore_eos": True}
    try:
        with httpx.Client(base_url=live.url, timeout=30) as raw:
            with raw.stream("POST", "/v1/completions", json=body | {"max_tokens": 500}) as response:
                lines = response.iter_lines()
                next(lines)
                for engine in engines:
                    engine.kill()
                killed = time.monotonic()
                rest = [line for line in lines if line]
            assert time.monotonic() - killed < 5
            assert any('"error"' in line and "overloaded" in line for line in rest)
            assert raw.get("/health").status_code == 503
            answer = raw.post("/v1/completions", json=body | {"stream": False})
            assert answer.status_code == 503 and answer.headers["retry-after"]
        live.wait(lambda: deaths)
    finally:
        live.stop()
