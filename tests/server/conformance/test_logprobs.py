"""Checklist points 42-49: log-probabilities."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from tests.server.conformance.helpers import (
    PROMPT,
    chat,
    complete,
    data_lines,
    post_chat,
    post_completion,
    refused,
    stream,
)
from tests.server.live import Live


def content(answer: Any) -> list[Any]:
    return list(answer.choices[0].logprobs.content)


def test_c42_one_entry_per_token_of_the_content(client: openai.OpenAI, live: Live) -> None:
    answer = chat(client, logprobs=True, ignore_eos=True, logit_bias={str(live.codec.eos_token_id): -100})
    assert answer.usage is not None and len(content(answer)) == answer.usage.completion_tokens
    ended = chat(client, logprobs=True, logit_bias={str(live.codec.eos_token_id): 100}, temperature=0)
    assert content(ended) == [] and ended.usage is not None and ended.usage.completion_tokens == 1


def test_c42_tokens_inside_a_stop_string_are_left_out(client: openai.OpenAI) -> None:
    fields = {"max_tokens": 40, "ignore_eos": True, "logprobs": True, "spec_decode": False}  # drafts move last digits
    whole = chat(client, **fields)
    said = str(whole.choices[0].message.content)
    for start in range(4, 12):
        cut = chat(client, stop=said[start : start + 8], **fields)
        entries, kept = content(cut), str(cut.choices[0].message.content)
        assert entries == content(whole)[: len(entries)]
        covered = b"".join(bytes(entry.bytes) for entry in entries)
        assert covered.decode("utf-8", "replace").startswith(kept)
        # the last listed token reaches into the text that was kept
        assert not entries or len((covered[: -len(entries[-1].bytes)]).decode("utf-8", "ignore")) < len(kept)


@pytest.mark.parametrize("k", [0, 1, 5, 20])
def test_c43_exactly_k_sorted(client: openai.OpenAI, k: int) -> None:
    entries = content(chat(client, logprobs=True, top_logprobs=k))
    assert entries
    for entry in entries:
        assert len(entry.top_logprobs) == k
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert all(top.logprob >= entry.logprob for top in entry.top_logprobs if top.token != entry.token) or k > 1


def test_c43_greedy_token_is_the_top(client: openai.OpenAI) -> None:
    for entry in content(chat(client, logprobs=True, top_logprobs=1, temperature=0)):
        assert (entry.token, entry.logprob) == (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob)


def test_c44_bytes_round_trip(client: openai.OpenAI) -> None:
    answer = chat(client, logprobs=True, ignore_eos=True, max_tokens=60)
    joined = b"".join(bytes(entry.bytes) for entry in content(answer))
    assert joined.decode("utf-8", "replace") == answer.choices[0].message.content


def test_c45_finite(raw: httpx.Client) -> None:
    for top in (20, 1):
        text = post_chat(raw, logprobs=True, top_logprobs=top, logprob_token_ids=[5, 6]).text
        assert "Infinity" not in text and "NaN" not in text
    masked = post_chat(raw, logprobs=True, top_logprobs=3, allowed_token_ids=[9], logprobs_mode="processed")
    top = masked.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert [one["logprob"] for one in top] == [pytest.approx(0, abs=1e-5), -9999.0, -9999.0]


def test_c46_top_without_logprobs(raw: httpx.Client) -> None:
    refused(post_chat(raw, top_logprobs=2), "top_logprobs")
    refused(post_chat(raw, logprobs=False, top_logprobs=2), "top_logprobs")
    refused(post_chat(raw, logprobs=True, top_logprobs=21), "top_logprobs")
    refused(post_chat(raw, logprobs=True, top_logprobs=-1), "top_logprobs")
    refused(post_chat(raw, logprobs=1), "logprobs")


@pytest.mark.parametrize("k", [0, 1, 5])
def test_c47_completions(client: openai.OpenAI, live: Live, k: int) -> None:
    answer = complete(client, logprobs=k, ignore_eos=True).choices[0]
    lists = answer.logprobs
    assert lists is not None and lists.tokens and lists.top_logprobs and lists.text_offset and lists.token_logprobs
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == len(lists.text_offset) == 24
    for token, logprob, top in zip(lists.tokens, lists.token_logprobs, lists.top_logprobs, strict=True):
        assert 1 <= len(top) <= k + 1 and top[token] == logprob
    for token, at in zip(lists.tokens, lists.text_offset, strict=True):
        whole = "\ufffd" not in token and not token.startswith("<|")  # neither part of a character nor skipped
        assert not whole or answer.text[at:].startswith(token)


def test_c47_six(raw: httpx.Client) -> None:
    refused(post_completion(raw, logprobs=6), "logprobs")
    refused(post_completion(raw, logprobs=True), "logprobs")
    assert post_completion(raw, logprobs=None).status_code == 200


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
@pytest.mark.parametrize("k", [0, 1, 5])
def test_c48_echo(raw: httpx.Client, live: Live, max_tokens: int, k: int) -> None:
    ids = live.codec.encode_plain(PROMPT)
    for prompt in (PROMPT, ids, [ids]):
        body = post_completion(
            raw, prompt=prompt, echo=True, logprobs=k, max_tokens=max_tokens, temperature=0, ignore_eos=True
        ).json()
        choice = body["choices"][0]
        lists = choice["logprobs"]
        assert {len(values) for values in lists.values()} == {len(ids) + max_tokens}
        assert lists["token_logprobs"][0] is None and lists["top_logprobs"][0] is None
        assert None not in lists["token_logprobs"][1:] and None not in lists["top_logprobs"][1:]
        assert choice["text"].startswith(PROMPT)
        assert lists["text_offset"][: len(ids)] == [len(live.codec.decode(ids[:at])) for at in range(len(ids))]
        assert body["usage"]["completion_tokens"] == max_tokens
        assert choice["finish_reason"] == "length"


def test_c48_terminating_eos_has_its_entry(raw: httpx.Client, live: Live) -> None:
    eos = live.codec.eos_token_id
    fields = {"prompt": [[8, 9], [7], [10, 11, 12]], "logit_bias": {str(eos): 100}, "max_tokens": 1, "logprobs": 1}
    choices = post_completion(raw, echo=True, temperature=0, **fields).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    for choice, length in zip(choices, (2, 1, 3), strict=True):
        assert len(choice["logprobs"]["token_logprobs"]) == length + 1
        assert choice["finish_reason"] == "stop"
        assert "<|end|>" not in choice["text"]
        assert choice["logprobs"]["text_offset"][-1] == len(choice["text"])


def test_c48_is_greedy_by_the_clients_rule(raw: httpx.Client, live: Live) -> None:
    """A harness compares floats: the token is greedy if its logprob equals the largest of the dictionary."""
    greedy = post_completion(raw, prompt=[8, 9], temperature=0, max_tokens=12, ignore_eos=True, return_token_ids=True)
    ids = [8, 9, *greedy.json()["choices"][0]["token_ids"]]
    ids[8] = 77 if ids[8] != 77 else 78
    lists = post_completion(raw, prompt=[ids], echo=True, logprobs=1, max_tokens=1).json()["choices"][0]["logprobs"]
    flags = [
        logprob == max(top.values())
        for logprob, top in zip(lists["token_logprobs"][2:-1], lists["top_logprobs"][2:-1], strict=True)
    ]
    assert flags[:6] == [True] * 6 and flags[6] is False


def test_c49_streamed_equal_whole(client: openai.OpenAI, raw: httpx.Client) -> None:
    plain = {"spec_decode": False}  # drafts change the shape of the batch as time has it, and with it the last digits
    fields = {"logprobs": True, "top_logprobs": 2, "ignore_eos": True, "max_tokens": 30, **plain}
    whole = content(chat(client, **fields))
    pieces = [
        entry
        for chunk in stream(client, **fields)
        for choice in chunk.choices
        if choice.logprobs is not None
        for entry in choice.logprobs.content or []
    ]
    assert [p.model_dump() for p in pieces] == [w.model_dump() for w in whole]
    lists = complete(client, logprobs=2, **plain).choices[0].logprobs
    assert lists is not None
    joined: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for event in data_lines(post_completion(raw, logprobs=2, stream=True, **plain)):
        for name in joined:
            joined[name] += event["choices"][0]["logprobs"][name]
    assert joined == {name: getattr(lists, name) for name in joined}


def test_prompt_logprobs(raw: httpx.Client, live: Live) -> None:
    body = post_chat(raw, prompt_logprobs=2, return_token_ids=True).json()
    ids, rows = body["prompt_token_ids"], body["prompt_logprobs"]
    assert len(rows) == len(ids) and rows[0] is None
    for token, row in zip(ids[1:], rows[1:], strict=True):
        assert set(row[str(token)]) == {"logprob", "rank", "decoded_token"}
        assert row[str(token)]["decoded_token"] == live.codec.token_text(token)
        assert 2 <= len(row) <= 3 and {1, 2} <= {one["rank"] for one in row.values()}
    two = post_completion(raw, prompt=["a b", "c d e"], prompt_logprobs=0).json()["choices"]
    assert all(choice["prompt_logprobs"][0] is None for choice in two)
    refused(post_chat(raw, prompt_logprobs=1, stream=True), "prompt_logprobs")


def test_other_ways_to_name_tokens(client: openai.OpenAI, raw: httpx.Client) -> None:
    answer = chat(client, logprobs=True, return_tokens_as_token_ids=True, return_token_ids=True, ignore_eos=True)
    ids = answer.choices[0].token_ids  # type: ignore[attr-defined]
    named = [int(entry.token.removeprefix("token_id:")) for entry in content(answer)]
    assert [token for token in ids if token in named] == named
    asked = content(chat(client, logprobs=True, logprob_token_ids=[40, 41], return_tokens_as_token_ids=True))
    assert {top.token for top in asked[0].top_logprobs} == {"token_id:40", "token_id:41"}
    refused(post_chat(raw, logprob_token_ids=[40]), "logprob_token_ids")
    refused(post_chat(raw, logprobs=True, logprob_token_ids=[4096]), "logprob_token_ids[0]")


def test_a_mode_alone_asks_for_nothing(client: openai.OpenAI) -> None:
    for fields in ({}, {"seed": 3}, {"temperature": 0}):
        assert chat(client, logprobs_mode="processed", **fields).choices[0].logprobs is None


def test_processed_mode(client: openai.OpenAI) -> None:
    raw_values = content(chat(client, logprobs=True, temperature=2.0))
    processed = content(chat(client, logprobs=True, temperature=2.0, logprobs_mode="processed"))
    assert [entry.token for entry in raw_values] == [entry.token for entry in processed]
    assert raw_values[0].logprob != processed[0].logprob
