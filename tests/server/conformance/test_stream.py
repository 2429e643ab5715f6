"""Checklist points 50-59: streaming."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.server.conformance.helpers import (
    chat,
    complete,
    data_lines,
    post_chat,
    post_completion,
    refused,
    stream,
    text_of,
)
from tests.server.live import Live

USAGE = {"include_usage": True}


def test_c50_form(raw: httpx.Client) -> None:
    response = post_chat(raw, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "x-request-id" in response.headers
    events = response.text.split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert events[-1] == "data: [DONE]"  # 58
    assert all("error" not in json.loads(event[6:]) for event in events[:-1])


def test_c51_role_first(client: openai.OpenAI) -> None:
    chunks = stream(client, n=2)
    for index in (0, 1):
        deltas = [choice.delta for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert (deltas[0].role, deltas[0].content) == ("assistant", "")
        assert all(delta.role is None for delta in deltas[1:])


def test_c52_constant_frame(client: openai.OpenAI) -> None:
    chunks = stream(client)
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"


def test_c53_one_finish_reason(client: openai.OpenAI, raw: httpx.Client) -> None:
    chunks = stream(client, n=3)
    for index in range(3):
        reasons = [c.finish_reason for chunk in chunks for c in chunk.choices if c.index == index]
        assert [reason is not None for reason in reasons] == [False] * (len(reasons) - 1) + [True]
    events = data_lines(post_completion(raw, stream=True, n=2))
    for index in range(2):
        reasons = [c["finish_reason"] for event in events for c in event["choices"] if c["index"] == index]
        assert all(reason is None for reason in reasons[:-1]) and reasons[-1] in ("stop", "length")


@pytest.mark.parametrize(
    "fields",
    [{"temperature": 0}, {}, {"n": 2}, {"ignore_eos": True, "max_tokens": 60}, {"stream_interval": 1},
     {"stream_interval": 5}, {"stop": ["e", "a"]}, {"min_tokens": 9, "stop": "e"}],
)  # fmt: skip
def test_c54_same_text(client: openai.OpenAI, raw: httpx.Client, fields: dict[str, Any]) -> None:
    fields = {**fields, "spec_decode": False}  # drafts follow the clock, and the last digits follow them
    whole, chunks = chat(client, **fields), stream(client, **fields)
    for choice in whole.choices:
        assert text_of(chunks, choice.index) == choice.message.content
        ends = [c for chunk in chunks for c in chunk.choices if c.index == choice.index and c.finish_reason]
        assert [(end.finish_reason, end.stop_reason) for end in ends] == [(choice.finish_reason, choice.stop_reason)]  # type: ignore[attr-defined]
        assert ends[0].cumulative_logprob == pytest.approx(choice.cumulative_logprob)  # type: ignore[attr-defined]
    texts = [choice.text for choice in complete(client, **fields).choices]
    events = data_lines(post_completion(raw, stream=True, **fields))
    for index, text in enumerate(texts):
        assert "".join(c["text"] for event in events for c in event["choices"] if c["index"] == index) == text


def test_c55_include_usage(client: openai.OpenAI, raw: httpx.Client) -> None:
    for post in (post_chat, post_completion):
        events = data_lines(post(raw, stream=True, stream_options=USAGE | {"surprise": 1}))
        assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] > 0
        assert all(event["usage"] is None for event in events[:-1])
    whole = chat(client)
    assert stream(client, stream_options=USAGE)[-1].usage == whole.usage


def test_c56_no_usage_unless_asked(raw: httpx.Client) -> None:
    for post in (post_chat, post_completion):
        for options in ({}, {"stream_options": {}}, {"stream_options": {"include_usage": False}}):
            events = data_lines(post(raw, stream=True, **options))
            assert all("usage" not in event and event["choices"] for event in events)


def test_continuous_usage(raw: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = data_lines(post_chat(raw, stream=True, stream_options=options))
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts) and events[-1]["choices"] == []
    events = data_lines(post_chat(raw, stream=True, stream_options={"continuous_usage_stats": True}))
    assert all(event["usage"] and event["choices"] for event in events)


def test_c57_options_without_stream(raw: httpx.Client) -> None:
    refused(post_chat(raw, stream_options=USAGE), "stream_options")
    refused(post_completion(raw, stream_options=USAGE, stream=False), "stream_options")


def test_c59_characters_stay_whole(client: openai.OpenAI, live: Live) -> None:
    ids = live.codec.encode_plain("é€😀")  # bytes of several characters, forced one token at a time
    emoji = next(token for token in ids if len(live.codec.token_bytes(token)) == 1)
    chunks = stream(client, logit_bias={str(emoji): 100}, temperature=0, max_tokens=6)
    whole = chat(client, logit_bias={str(emoji): 100}, temperature=0, max_tokens=6)
    assert text_of(chunks) == whole.choices[0].message.content


def test_one_token_per_chunk(raw: httpx.Client) -> None:
    events = data_lines(post_chat(raw, stream=True, stream_interval=1, return_token_ids=True, ignore_eos=True))
    counts = [len(c["token_ids"]) for event in events for c in event["choices"] if "token_ids" in c]
    assert sum(counts) == 24 and max(counts) == 1
    ids = [token for event in events for c in event["choices"] for token in c.get("token_ids", ())]
    whole = post_chat(raw, return_token_ids=True, ignore_eos=True).json()
    assert whole["choices"][0]["token_ids"] == ids
    assert events[0]["prompt_token_ids"] == whole["prompt_token_ids"]


def test_a_parser_that_strips_six_bytes_survives(raw: httpx.Client) -> None:
    """Some load generators look at nothing before they index."""
    text = ""
    for line in post_chat(raw, stream=True).text.split("\n"):
        if line.strip() and line[6:] != "[DONE]":
            data = json.loads(line[6:])
            assert "error" not in data
            text += data["choices"][0]["delta"].get("content") or ""
    assert text == post_chat(raw).json()["choices"][0]["message"]["content"]
