"""Checklist points 26-32: stop strings. What to stop at is taken from what the model says without them."""

from __future__ import annotations

import httpx
import openai
import pytest

from tests.server.conformance.helpers import chat, complete, post_chat, refused, stream, text_of


@pytest.fixture
def said(client: openai.OpenAI) -> str:
    """A seeded text that the same request would repeat."""
    return str(chat(client, max_tokens=40, ignore_eos=True).choices[0].message.content)


def stopped(client: openai.OpenAI, **fields: object) -> openai.types.chat.chat_completion.Choice:
    return chat(client, max_tokens=40, ignore_eos=True, **fields).choices[0]


def test_c26_string(client: openai.OpenAI, said: str) -> None:
    stop = said[7:10]
    choice = stopped(client, stop=stop)
    assert choice.message.content == said[: said.index(stop)]
    assert choice.finish_reason == "stop" and choice.stop_reason == stop  # type: ignore[attr-defined]


def test_c27_list(client: openai.OpenAI, said: str) -> None:
    choice = stopped(client, stop=["\u2603", said[9:12]])
    assert choice.message.content == said[: said.index(said[9:12])]


def test_c28_excluded_across_tokens(client: openai.OpenAI, said: str) -> None:
    stop = said[5:25]  # several tokens long
    choice = stopped(client, stop=stop)
    assert choice.message.content == said[: said.index(stop)]
    assert text_of(stream(client, max_tokens=40, ignore_eos=True, stop=stop)) == choice.message.content


@pytest.mark.parametrize("field", ["include_stop_str_in_output", "no_stop_trim"])
def test_c29_included(client: openai.OpenAI, said: str, field: str) -> None:
    stop = said[7:10]
    choice = stopped(client, stop=stop, **{field: True})
    assert choice.message.content == said[: said.index(stop) + 3]


def test_c30_first_end_wins(client: openai.OpenAI, said: str) -> None:
    long, short = said[4:20], said[8:12]
    choice = stopped(client, stop=[long, short])
    assert choice.message.content == said[: said.index(short)]
    assert choice.stop_reason == short  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [5, 64, 1024])
def test_c31_many(client: openai.OpenAI, said: str, count: int) -> None:
    stops = [f"\u2603{i}" for i in range(count - 1)] + [said[7:10]]
    assert stopped(client, stop=stops).message.content == said[: said.index(said[7:10])]


def test_c31_too_many_or_wrong(raw: httpx.Client) -> None:
    refused(post_chat(raw, stop=["x"] * 1025), "stop")
    refused(post_chat(raw, stop=""), "stop")
    refused(post_chat(raw, stop=["a", ""]), "stop")
    refused(post_chat(raw, stop="x" * 1025), "stop")
    refused(post_chat(raw, stop=[1]), "stop")
    refused(post_chat(raw, stop=3), "stop")


@pytest.mark.parametrize("stop", [None, []])
def test_none(client: openai.OpenAI, said: str, stop: object) -> None:
    assert stopped(client, stop=stop).message.content == said


def test_c32_stream_never_leaks(client: openai.OpenAI, said: str) -> None:
    stops = [said[start : start + 6] for start in (6, 14)]
    cut = said[: min(said.index(stop) for stop in stops)]
    out = ""
    for chunk in stream(client, max_tokens=40, ignore_eos=True, stop=stops):
        for choice in chunk.choices:
            out += choice.delta.content or ""
            assert cut.startswith(out)
    assert out == cut


def test_usage_ends_at_the_match(client: openai.OpenAI, said: str) -> None:
    """Tokens that were on their way when the stop string completed do not count."""
    fields = {"max_tokens": 40, "ignore_eos": True, "stop": said[7:10], "spec_decode": False}  # drafts move last digits
    one = chat(client, return_token_ids=True, logprobs=True, **fields)
    ids = one.choices[0].token_ids  # type: ignore[attr-defined]
    assert one.usage is not None and one.usage.completion_tokens == len(ids)
    again = chat(client, logprobs=True, **fields)
    assert again.usage is not None and again.usage.completion_tokens == len(ids)
    assert again.choices[0].cumulative_logprob == pytest.approx(one.choices[0].cumulative_logprob)  # type: ignore[attr-defined]


def test_stop_token_ids(client: openai.OpenAI) -> None:
    ids = chat(client, max_tokens=20, ignore_eos=True, return_token_ids=True).choices[0].token_ids  # type: ignore[attr-defined]
    choice = chat(client, max_tokens=20, ignore_eos=True, stop_token_ids=[ids[6]], return_token_ids=True).choices[0]
    assert choice.token_ids == ids[: ids.index(ids[6]) + 1]  # type: ignore[attr-defined]
    assert choice.finish_reason == "stop" and choice.stop_reason == ids[6]  # type: ignore[attr-defined]


def test_completions_stop_too(client: openai.OpenAI) -> None:
    text = complete(client, ignore_eos=True).choices[0].text
    choice = complete(client, ignore_eos=True, stop=text[4:7]).choices[0]
    assert choice.text == text[: text.index(text[4:7])] and choice.finish_reason == "stop"
