"""Checklist points 33-41: sampling parameters."""

from __future__ import annotations

import math
from typing import Any

import httpx
import openai
import pytest

from tests.server.conformance.helpers import chat, complete, post_chat, post_completion, refused
from tests.server.live import Live


def words(answer: openai.types.chat.ChatCompletion, index: int = 0) -> str:
    return str(answer.choices[index].message.content)


def test_c33_greedy_is_deterministic(client: openai.OpenAI) -> None:
    texts = {words(chat(client, temperature=0, seed=seed)) for seed in (1, 2, None)}
    assert len(texts) == 1


def test_c34_seed(client: openai.OpenAI) -> None:
    same = {words(chat(client, seed=-(2**63), ignore_eos=True)) for _ in range(2)}
    assert len(same) == 1
    assert words(chat(client, seed=11, ignore_eos=True)) not in same
    assert words(chat(client, seed=None, ignore_eos=True)) != words(chat(client, seed=None, ignore_eos=True))


def test_c35_n(client: openai.OpenAI) -> None:
    answer = chat(client, n=3, ignore_eos=True, max_tokens=6)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None and answer.usage.completion_tokens == 18


def test_c36_n_distinct_and_nested(client: openai.OpenAI) -> None:
    three = chat(client, n=3, ignore_eos=True)
    assert len({words(three, index) for index in range(3)}) == 3
    assert words(chat(client, n=1, ignore_eos=True)) == words(three)


def test_c37_logit_bias(client: openai.OpenAI, raw: httpx.Client, live: Live) -> None:
    token = live.codec.encode_plain("7")[0]
    forced = chat(client, logit_bias={str(token): 100}, max_tokens=4)
    assert words(forced) == "7777"
    ids = chat(client, temperature=0, return_token_ids=True, ignore_eos=True).choices[0].token_ids  # type: ignore[attr-defined]
    banned = chat(client, temperature=0, return_token_ids=True, ignore_eos=True, logit_bias={str(ids[0]): -100})
    assert banned.choices[0].token_ids[0] != ids[0]  # type: ignore[attr-defined]
    for bad in ({"4096": 1}, {"-1": 1}, {"x": 1}, {"9" * 5000: 1}, {"3": 101}, {"3": -101}, {"3": "1"}, {"3": True}):
        refused(post_chat(raw, logit_bias=bad))
    refused(post_chat(raw, logit_bias=[1]), "logit_bias")


@pytest.mark.parametrize("field", ["presence_penalty", "frequency_penalty"])
def test_c38_penalties(client: openai.OpenAI, raw: httpx.Client, field: str) -> None:
    assert chat(client, **{field: 2})
    assert chat(client, **{field: -2})
    for value in (2.1, -2.1, "1", True):
        refused(post_chat(raw, **{field: value}), field)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("top_p", [0, -0.1, 1.1, "0.5", [0.5]]),  # 39
        ("temperature", [-0.1, 101, "1"]),
        ("top_k", [-2, 1.5, "3", True]),
        ("min_p", [-0.1, 1.1]),
        ("repetition_penalty", [0, 10.5]),
        ("n", [0, 129, 1.5, "2", True]),
        ("seed", [2**63, -(2**63) - 1, 0.5, "1"]),
        ("min_tokens", [-1]),
        ("stop_token_ids", [[4096], [-1], 3, ["a"]]),
        ("allowed_token_ids", [[], [4096], ["a"]]),
        ("bad_words", ["x", [""], [3], ["x"] * 257]),
        ("stream", [1, "true"]),
        ("user", [3]),
        ("reasoning_effort", ["huge"]),
        ("logprobs_mode", ["cooked"]),
        ("priority", ["high", 2**40]),
        ("truncate_prompt_tokens", [0, -2]),
        ("prompt_logprobs", [21, -1, True]),
        ("stream_interval", [0]),
        ("request_id", ["", "x" * 129, "é"]),
        ("chat_template_kwargs", [[1]]),
        ("cache_salt", [""]),
    ],
)
def test_c39_ranges(raw: httpx.Client, field: str, values: list[Any]) -> None:
    for value in values:
        error = refused(post_chat(raw, **{field: value}))
        assert error["param"].split("[")[0] == field


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_not_finite(raw: httpx.Client, number: str) -> None:
    body = f'{{"model":"drafthouse-tiny","messages":[{{"role":"user","content":"x"}}],"temperature":{number}}}'
    refused(raw.post("/v1/chat/completions", content=body), "temperature")


def test_integers_may_be_written_with_a_point(client: openai.OpenAI) -> None:
    assert chat(client, max_tokens=3.0, ignore_eos=True).usage.completion_tokens == 3  # type: ignore[union-attr]


def test_c40_top_k_and_min_p(client: openai.OpenAI) -> None:
    greedy = words(chat(client, temperature=0))
    assert words(chat(client, top_k=1)) == greedy
    assert words(chat(client, min_p=1.0)) == greedy
    off = [words(chat(client, **fields)) for fields in ({}, {"top_k": 0}, {"top_k": -1}, {"min_p": 0}, {"top_p": 1})]
    assert len(set(off)) == 1


def test_allowed_token_ids_and_bad_words(client: openai.OpenAI, live: Live) -> None:
    digits = [live.codec.encode_plain(str(digit))[0] for digit in range(10)]
    text = words(chat(client, allowed_token_ids=digits, max_tokens=12))
    assert text.isdigit() and len(text) == 12
    text = words(chat(client, allowed_token_ids=digits, max_tokens=40, bad_words=["7", "3"]))
    assert not set(text) & set("73")


def test_c41_unknown_extras(client: openai.OpenAI, raw: httpx.Client) -> None:
    plain = words(chat(client))
    assert words(chat(client, watermarking=True, session_id="x", zzz={"a": 1})) == plain
    for name in ("guided_foo", "Grammar", "json", "schema", "format", "choices", "response_schema", "constraints"):
        error = refused(post_chat(raw, **{name: "x"}), name, code="unknown_constraint_field")
        assert "nearest" in error["message"]
    assert post_chat(raw, guided_foo=None).status_code == 200
    assert post_chat(raw, formatting="x").status_code == 200
    refused(post_chat(raw, stop_regex="x"), "stop_regex")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("thinking_token_budget", 5), ("custom_logit_processor", "x"), ("lora_path", "x"),
        ("return_hidden_states", True), ("typical_p", 1.5), ("mirostat_tau", -3),
        ("modalities", ["audio"]), ("audio", {}), ("chat_template", "{{ 1 }}"), ("functions", []),
        ("retrieval", {}), ("routing", {}), ("experiment", "x"), ("experiment", 0), ("top_a", 1.5), ("tfs", 0),
        ("top_h", "x"), ("smoothing_factor", -1), ("repetition_last_n", -4), ("trie_scope", "server"),
        ("knn", {}), ("ngram_mix", {}), ("dry_base", 3), ("xtc_threshold", 0.2), ("dynatemp_exponent", 2),
        ("best_of", 5), ("suffix", "x"), ("prompt", "x"),
    ],
)  # fmt: skip
def test_nothing_is_ignored(raw: httpx.Client, field: str, value: Any) -> None:
    refused(post_chat(raw, **{field: value}), field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", []), ("tools", [{"type": "function"}]), ("tool_choice", "required"), ("max_completion_tokens", 2),
        ("modalities", ["audio"]), ("chat_template", "x"), ("reasoning_effort", "low"), ("top_logprobs", 2),
    ],
)  # fmt: skip
def test_fields_of_the_other_endpoint(raw: httpx.Client, field: str, value: Any) -> None:
    refused(post_completion(raw, **{field: value}), field)
    assert post_completion(raw, **{field: None}).status_code == 200


def test_harmless_fields(client: openai.OpenAI) -> None:
    plain = words(chat(client))
    harmless = {
        "user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "safety_identifier": "x",
        "prompt_cache_key": "x", "verbosity": "low", "prediction": None, "use_beam_search": False,
        "include_reasoning": True, "separate_reasoning": True, "length_penalty": 1.0, "priority": 3,
        "reasoning_effort": "low", "modalities": ["text"], "chat_template_kwargs": {"thinking": False},
        "spaces_between_special_tokens": False, "guided_decoding_backend": "auto",
        "response_format": {"type": "text"}, "parallel_tool_calls": True, "cache_salt": "s",
    }  # fmt: skip
    assert words(chat(client, **harmless)) == plain


def test_temperature_extremes(client: openai.OpenAI) -> None:
    for temperature in (1e-6, 100):
        answer = chat(client, temperature=temperature, logprobs=True)
        assert math.isfinite(answer.choices[0].cumulative_logprob)  # type: ignore[attr-defined]


def test_completions_share_the_rules(client: openai.OpenAI) -> None:
    one, two = (complete(client, top_k=1, seed=seed).choices[0].text for seed in (1, 2))
    assert one == two
