"""`return_sampler_trace` over HTTP: complete, equal in both forms, without effect on the text, and bounded."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import openai
import pytest

from tests.server.conformance.helpers import chat, complete, data_lines, post_chat, post_completion, refused, stream
from tests.server.live import Live

CHAIN: dict[str, Any] = {"sampler": [{"name": "min_p", "min_p": 0.1}, "typical"], "temperature": 0.8}
TOP = 5


@pytest.fixture
def traced(live: Live) -> Live:
    if "sampler_trace" not in live.runner.capabilities:
        pytest.skip("the runner without a model has no chain to watch")
    return live


def trace_of(choice: Any) -> list[dict[str, Any]]:
    return list(choice.model_extra["sampler_trace"])


def test_a_runner_without_traces_says_so(raw: httpx.Client, live: Live) -> None:
    if "sampler_trace" in live.runner.capabilities:
        pytest.skip("it has traces")
    for post in (post_chat, post_completion):
        refused(post(raw, return_sampler_trace=True), "return_sampler_trace", code="unsupported_by_runner")
        assert post(raw, return_sampler_trace=False).status_code == 200


def test_bad_values_are_named(raw: httpx.Client) -> None:
    for value in ("yes", 1, 5, [True]):
        refused(post_chat(raw, return_sampler_trace=value), "return_sampler_trace")
    assert post_completion(raw, return_sampler_trace=None).status_code == 200


def test_tokens_are_those_without_a_trace(client: openai.OpenAI, traced: Live) -> None:
    plain = complete(client, n=3, return_token_ids=True, **CHAIN)
    watched = complete(client, n=3, return_token_ids=True, return_sampler_trace=True, **CHAIN)
    for one, other in zip(plain.choices, watched.choices, strict=True):
        assert one.text == other.text and "sampler_trace" not in (one.model_extra or {})
        ids = [token["id"] for token in trace_of(other)]
        assert ids == other.model_extra["token_ids"] == one.model_extra["token_ids"]  # type: ignore[index]


def test_numbers_agree_with_log_probabilities(client: openai.OpenAI, traced: Live) -> None:
    answer = complete(client, return_sampler_trace=True, logprobs=5, ignore_eos=True, **CHAIN)
    last = complete(client, return_sampler_trace=True, logprobs=5, ignore_eos=True, logprobs_mode="processed", **CHAIN)
    (choice,), (processed,) = answer.choices, last.choices
    assert choice.logprobs is not None and processed.logprobs is not None
    assert choice.text == processed.text
    tokens = trace_of(choice)
    assert len(tokens) == 24
    for token, raw, final, tops in zip(
        tokens,
        choice.logprobs.token_logprobs or (),
        processed.logprobs.token_logprobs or (),
        choice.logprobs.top_logprobs or (),
        strict=True,
    ):
        assert token["probability"] == pytest.approx(math.exp(raw), rel=1e-4)
        assert [stage["name"] for stage in token["stages"]] == ["temperature", "min_p", "typical"]
        assert token["stages"][0]["drawn"][0] == token["probability"]
        assert token["stages"][-1]["drawn"][1] == pytest.approx(math.exp(final), rel=1e-4)
        best = max(tops, key=lambda text: tops[text])
        assert best in {one["token"] for one in token["candidates"]}
        before = token["possible"]
        for stage in token["stages"]:
            assert stage["possible"][0] == before and TOP <= len(stage["candidates"]) <= 2 * TOP
            before = stage["possible"][1]
            assert 0 <= stage["removed_mass"] < 1 and min(stage["entropy"]) >= 0
            gone = [one for one in stage["candidates"] if one["after"] == 0 < one["before"]]
            assert sum(one["before"] for one in gone) <= stage["removed_mass"] + 1e-6
        (number,), (low, high) = token["draw"]["random"], token["draw"]["interval"]
        assert token["draw"]["name"] == "iid" and low <= number < high
        assert high - low == pytest.approx(token["stages"][-1]["drawn"][1], abs=1e-5)


def test_a_stream_carries_the_same(client: openai.OpenAI, raw: httpx.Client, traced: Live) -> None:
    fields: dict[str, Any] = {"return_sampler_trace": True, "n": 2, **CHAIN}
    whole = chat(client, **fields)
    for extra in ({}, {"stream_interval": 5}):
        collected: dict[int, list[Any]] = {0: [], 1: []}
        for chunk in stream(client, **fields, **extra):
            for choice in chunk.choices:
                collected[choice.index] += (choice.model_extra or {}).get("sampler_trace", [])
        assert collected == {choice.index: trace_of(choice) for choice in whole.choices}
    (one,) = complete(client, return_sampler_trace=True, **CHAIN).choices
    parts = data_lines(post_completion(raw, stream=True, return_sampler_trace=True, **CHAIN))
    assert trace_of(one) == [token for part in parts for choice in part["choices"] for token in choice["sampler_trace"]]


def test_stop_strings_greedy_and_ids(client: openai.OpenAI, traced: Live) -> None:
    answer = complete(client, return_sampler_trace=True, temperature=0, stop="r", return_tokens_as_token_ids=True)
    tokens = trace_of(answer.choices[0])
    assert tokens and all(token["draw"]["name"] == "greedy" and token["stages"] == [] for token in tokens)
    assert all(token["token"] == f"token_id:{token['id']}" for token in tokens)
    assert all(token["candidates"][0]["id"] == token["id"] for token in tokens)


def test_the_amount_is_bounded(raw: httpx.Client, traced: Live) -> None:
    limit = traced.state.limits.traced_tokens
    error = refused(post_chat(raw, return_sampler_trace=True, n=128, max_tokens=9), "return_sampler_trace")
    assert str(limit) in error["message"] and str(128 * 9) in error["message"]
    refused(post_completion(raw, return_sampler_trace=True, prompt=["a"] * 50, max_tokens=21), "return_sampler_trace")
    refused(post_completion(raw, return_sampler_trace=True, best_of=100, max_tokens=11), "return_sampler_trace")
    whole = post_completion(raw, return_sampler_trace=True, n=8, max_tokens=limit // 8)
    assert whole.status_code == 200
    tokens = sum(len(choice["sampler_trace"]) for choice in whole.json()["choices"])
    assert len(whole.content) < 4096 * tokens and "NaN" not in whole.text
    assert json.loads(whole.text)["usage"]["completion_tokens"] == tokens


def test_it_is_no_matter_for_presets(live: Live) -> None:
    from server.presets import PresetError, check_presets

    with pytest.raises(PresetError, match="return_sampler_trace"):
        check_presets({"loud": {"return_sampler_trace": True}}, live.codec, 4096, 512)
