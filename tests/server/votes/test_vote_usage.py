"""What a vote says it has used is what was generated and read, also where samples are cancelled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.config import ServeConfig
from server.launch import build_state
from tests.server.conformance.answers import body, wait_released
from tests.server.conformance.helpers import data_lines, post_chat, post_completion
from tests.server.conformance.scripted import answers, say
from tests.server.conformance.test_voting import report
from tests.server.live import Live, fake_state, start

BETA = {"rule": "beta", "threshold": 0.6}  # the first answer is enough


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Live]:
    live = start(fake_state())
    yield live
    live.stop()


def generated(vote: dict[str, Any], live: Live, before: int) -> int:
    said = report(vote)
    assert vote["usage"]["completion_tokens"] == said["tokens"]["completion"]
    return live.runner.generated - before


@pytest.mark.parametrize("at_once", [None, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_cancelled_samples_count_to_their_last_token(
    raw: httpx.Client, live: Live, at_once: int | None, stream: bool
) -> None:
    """The engine goes on while the vote is looked at."""
    say(live, [*answers(7, 7), *["x y " * 40 + one for one in answers(*range(8))]])
    before = live.runner.generated
    voting = {"samples": 10, "stop": BETA, "at_once": at_once}
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    response = post_chat(raw, voting=voting, max_tokens=200, **options)
    vote = data_lines(response)[-1] if stream else body(response)
    wait_released(raw)
    assert report(vote)["used_samples"] == 1
    assert vote["usage"]["completion_tokens"] == generated(vote, live, before)
    assert len({request for request, choice in live.runner.aborted if choice is None}) == 1  # no wave after it


@pytest.mark.parametrize("seed", range(3))
def test_cancelled_parts_count_too(raw: httpx.Client, live: Live, seed: int) -> None:
    """Samples go on behind several covers of the prompt's end, each a request of its own."""
    say(live, [*answers(7, 7), *["x y " * 40 + one for one in answers(*range(8))]])
    before = live.runner.generated
    asked = {"prompt": "once upo", "prompt_boundary": "exact", "max_tokens": 200, "seed": seed}
    vote = body(post_completion(raw, voting={"samples": 10, "stop": BETA}, **asked))
    wait_released(raw)
    parts = [request for request in live.runner.requests if "-boundary" not in request.id]
    assert len(parts) > 1
    begun = sum(request.n for request in parts if request.begun)  # the end of a cover is output that nobody draws
    questions = len(live.runner.requests) - len(parts)
    assert vote["usage"]["completion_tokens"] == generated(vote, live, before) - questions + begun


def test_the_engine_agrees() -> None:
    live = start(build_state(ServeConfig(max_model_len=512, threads=1)))
    try:
        raw = httpx.Client(base_url=live.url, timeout=60)
        for seed in range(4):
            before = live.state.models[0].runner.stats().generated_tokens
            asked = {"temperature": 1.8, "max_tokens": 120, "seed": seed}
            voting = {"samples": 24, "stop": BETA, "extract": "whole", "on_truncated": "keep"}
            vote = body(post_chat(raw, voting=voting, **asked))
            wait_released(raw)
            now = live.state.models[0].runner.stats().generated_tokens
            assert vote["usage"]["completion_tokens"] == now - before
            assert report(vote)["tokens"]["discarded"] > 0
    finally:
        live.stop()


# --- prompts that the cache has


@pytest.mark.parametrize(
    "voting",
    [
        {"samples": 6, "at_once": 2},
        {"samples": 6, "rule": "deepconf", "params": {"mode": "online", "warmup": 3, "window": 8}},
        {"samples": 3, "rule": "iew", "params": {"mode": "sequential", "history": "all"}},
    ],
    ids=str,
)
def test_a_vote_does_not_find_what_it_has_left_in_the_cache_itself(voting: dict[str, Any]) -> None:
    live = start(build_state(ServeConfig(max_model_len=1024, threads=1)))
    try:
        raw = httpx.Client(base_url=live.url, timeout=60)
        asked = {"messages": [{"role": "user", "content": "How much is left? " * 20}], "max_tokens": 20, "seed": 1}
        cold, warm = (body(post_chat(raw, voting=voting, **asked))["usage"] for _ in range(2))
    finally:
        live.stop()
    before, after = (usage["prompt_tokens_details"]["cached_tokens"] for usage in (cold, warm))
    assert cold["prompt_tokens"] == warm["prompt_tokens"]
    if voting.get("rule") == "iew":  # every attempt's prompt is counted, and each finds the one before
        assert cold["prompt_tokens"] / 3 < before < after <= cold["prompt_tokens"]
    else:
        assert before == 0 and 0 < after <= cold["prompt_tokens"]
