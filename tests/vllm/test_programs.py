"""Programs over vLLM's engine, through HTTP: the torch runner's tokens, and nothing left behind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.server.live import Live
from tests.vllm.test_server import LONG, PROMPT, ask, ids

pytestmark = pytest.mark.slow

PROGRAMS: list[dict[str, Any]] = [
    {"sampler": "priority", "n": 4},
    {"sampler": {"name": "priority", "key": "joint", "parallel": 3}, "n": 5, "repetition_penalty": 1.2},
    {"sampler": {"name": "priority", "regex": "(yes|no|maybe)", "dedupe": "text"}, "n": 6},
    {"sampler": {"name": "eager", "theta": 1.0}, "n": 4, "seed": 3},
    {"sampler": {"name": "eager", "theta": -1, "fork_mode": "split"}, "n": 4, "draw": "gumbel", "seed": 4},
    {"sampler": {"name": "tree", "budget": 6, "select": "puct", "rollout": "sample", "parallel": 2}, "n": 2, "seed": 5},
    {"use_beam_search": True, "n": 3},
    {"sampler": {"name": "conditional_beam", "event": {"min_len": 3, "no_repeat": {"n": 3}}}, "n": 2},
]


def released(live: Live) -> None:
    """Nothing runs, and every slot for rows is free."""
    live.wait(lambda: not live.runner.stats().requests_running and live.runner._rows.free == live.runner._slots)
    assert not live.runner._active and not live.runner._reports._heard


@pytest.mark.parametrize("fields", PROGRAMS, ids=str)
def test_tokens_are_those_of_the_torch_runner(
    vllm_server: Live, raw: httpx.Client, torch_raw: httpx.Client, fields: dict[str, Any]
) -> None:
    asked = {"max_tokens": 16, "logprobs": 2} | fields
    ours, theirs = ask(raw, **asked), ask(torch_raw, **asked)
    assert [one["token_ids"] for one in ours["choices"]] == [one["token_ids"] for one in theirs["choices"]]
    for one, other in zip(ours["choices"], theirs["choices"], strict=True):
        assert one["logprobs"]["token_logprobs"] == pytest.approx(other["logprobs"]["token_logprobs"], abs=1e-3)
    mine, other = ours["drafthouse"]["program"], theirs["drafthouse"]["program"]
    assert mine["forward_passes"] == other["forward_passes"]
    assert mine["tokens_computed"] >= other["tokens_computed"]  # pages are cached whole
    released(vllm_server)


def test_they_run_beside_others(vllm_server: Live, raw: httpx.Client) -> None:
    asked = [*PROGRAMS[:4], {"seed": 1}, {"temperature": 0}]
    alone = [ids(raw, **fields) for fields in asked]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda fields: ids(raw, **fields), asked * 2))
    assert together == alone * 2
    released(vllm_server)


def test_branches_find_the_prompt_cached(raw: httpx.Client) -> None:
    fields = {"sampler": "priority", "n": 3, "prompt": LONG, "cache_salt": "programs", "max_tokens": 40}
    first, again = (ask(raw, **fields) for _ in range(2))
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in (first, again)]
    assert cached[0] == 0 < cached[1]
    computed = first["drafthouse"]["program"]["tokens_computed"]
    assert computed <= 3 * 40 * 32  # of a page at most, for every row


def test_a_client_that_leaves_leaves_nothing(vllm_server: Live, raw: httpx.Client) -> None:
    body = {"model": "drafthouse-tiny", "prompt": PROMPT, "n": 4, "max_tokens": 400, "ignore_eos": True}
    for item in ("priority", "eager"):
        with raw.stream("POST", "/v1/completions", json=body | {"sampler": item, "stream": True}) as response:
            lines = response.iter_lines()  # closes the response when it is forgotten
            assert next(lines).startswith("data: ")
            assert vllm_server.runner.stats().requests_running == 1
        released(vllm_server)
    with pytest.raises(httpx.ReadTimeout):
        raw.post("/v1/completions", json=body | {"use_beam_search": True}, timeout=0.3)
    released(vllm_server)
    assert len(ids(raw, seed=1)[0]) == 12


def test_where_nothing_can_follow_the_choice_ends(vllm_server: Live, raw: httpx.Client) -> None:
    fields = {"sampler": "priority", "max_tokens": 4, "allowed_token_ids": [40], "bad_words": ["C"]}
    response = raw.post("/v1/completions", json={"model": "drafthouse-tiny", "prompt": PROMPT} | fields)
    assert response.json()["error"]["code"] == "constraint_unsatisfiable"
    released(vllm_server)
