"""Several engine processes on the CPU: the tokens stay those of one, and conversations keep their cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.live import Live
from tests.vllm.engine_process import ARGUMENTS, INSTALLED, serve
from tests.vllm.test_server import ask, ids, refused

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed")]

PAGE = 32  # tokens, as the servers of these tests have them
WAYS: dict[str, dict[str, Any]] = {
    "tensor": {"tensor_parallel_size": 2},
    "data": {"data_parallel_size": 2},
    # without a warm-up, which there is only when something is compiled, the CPU build's second stage has no buffers
    "pipeline": {
        "pipeline_parallel_size": 2,
        "enforce_eager": False,
        "compilation_config": {"mode": 2, "backend": "eager"},
    },
}


def agrees(raw: httpx.Client, other: httpx.Client) -> None:
    """Requests of all sorts have the same tokens, and what the processor reports arrives."""
    chain = {"seed": 3, "n": 4, "sampler": ["min_p", "dry"]}
    for fields in ({"seed": 3}, {"temperature": 0}, chain):
        assert ids(other, **fields) == ids(raw, **fields)
    error = refused(other, max_tokens=4, seed=1, allowed_token_ids=[40], bad_words=["C"])
    assert error["code"] == "constraint_unsatisfiable"


@pytest.fixture(scope="module", params=WAYS)
def parallel(request: pytest.FixtureRequest) -> Iterator[Live]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        if "compilation_config" in WAYS[request.param]:
            patch.setenv("TORCHDYNAMO_DISABLE", "0")
        live = serve(vllm_args=ARGUMENTS | WAYS[request.param])
    yield live
    live.stop()


@pytest.fixture
def other(parallel: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=parallel.url, timeout=60) as other:
        yield other


def test_tokens_are_those_of_one_process(raw: httpx.Client, other: httpx.Client) -> None:
    agrees(raw, other)
    program: dict[str, Any] = {"sampler": "priority", "n": 3}
    assert ids(other, **program) == ids(raw, **program)


def test_the_next_turn_finds_the_last_one_cached(other: httpx.Client) -> None:
    for talk in range(4):
        text = "".join(f"def name_{talk}_{i}(path):\n    return path\n\n" for i in range(12))
        first = ask(other, prompt=text, seed=1)
        second = ask(other, prompt=text + first["choices"][0]["text"] + "\n\ndef", seed=1)
        asked = first["usage"]["prompt_tokens"]
        assert asked > 3 * PAGE
        assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= asked // PAGE * PAGE


def test_the_choices_of_a_prompt_share_its_cache(parallel: Live, other: httpx.Client) -> None:
    text = "".join(f"def other_{i}(path):\n    return path\n\n" for i in range(12))
    before = parallel.runner.stats().cached_prompt_tokens
    found = ask(other, prompt=text, seed=1, n=4)
    pages = found["usage"]["prompt_tokens"] // PAGE
    parallel.wait(lambda: parallel.runner.stats().cached_prompt_tokens - before >= 3 * pages * PAGE)
