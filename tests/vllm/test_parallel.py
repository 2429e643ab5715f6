"""Several engine processes on the CPU: the tokens stay those of one."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.server.live import Live
from tests.vllm.engine_process import ARGUMENTS, INSTALLED, serve
from tests.vllm.test_server import ids, refused

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed")]


@pytest.fixture(scope="module", params=["tensor_parallel_size", "data_parallel_size"])
def parallel(request: pytest.FixtureRequest) -> Iterator[Live]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        live = serve(vllm_args={**ARGUMENTS, request.param: 2})
    yield live
    live.stop()


def test_tokens_are_those_of_one_process(raw: httpx.Client, parallel: Live) -> None:
    with httpx.Client(base_url=parallel.url, timeout=60) as other:
        chain = {"seed": 3, "n": 4, "sampler": ["min_p", "dry"]}
        for fields in ({"seed": 3}, {"temperature": 0}, chain, {"sampler": "priority", "n": 3}):
            assert ids(other, **fields) == ids(raw, **fields)
        error = refused(other, max_tokens=4, seed=1, allowed_token_ids=[40], bad_words=["C"])
        assert error["code"] == "constraint_unsatisfiable"
