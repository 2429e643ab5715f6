"""Checklist points 5-25: chat bodies and limits."""

from __future__ import annotations

import time
from typing import Any

import httpx
import openai
import pytest

from tests.server.conformance.helpers import MESSAGES, MODEL, chat, post_chat, post_completion, raises_400, refused
from tests.server.live import Live


def test_c05_id(client: openai.OpenAI) -> None:
    ids = [chat(client).id for _ in range(3)]
    assert all(one.startswith("chatcmpl-") and len(one) >= len("chatcmpl-") + 24 for one in ids)
    assert len(set(ids)) == 3


def test_c06_to_c12_shape(client: openai.OpenAI) -> None:
    answer = chat(client)
    assert answer.object == "chat.completion"  # 6
    assert isinstance(answer.created, int) and abs(answer.created - time.time()) < 5  # 7
    assert answer.model == MODEL  # 8
    message = answer.choices[0].message
    assert message.role == "assistant"  # 9
    assert isinstance(message.content, str)  # 10
    assert message.refusal is None  # 11
    usage = answer.usage
    assert usage is not None and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens  # 12
    assert usage.prompt_tokens_details is not None and usage.prompt_tokens_details.cached_tokens is not None
    assert usage.completion_tokens_details is not None and usage.completion_tokens_details.reasoning_tokens == 0
    assert answer.system_fingerprint


def test_c13_prompt_tokens(client: openai.OpenAI, live: Live) -> None:
    ids = live.codec.hf.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    answer = chat(client, return_token_ids=True)
    assert answer.usage is not None and answer.usage.prompt_tokens == len(ids)
    assert answer.prompt_token_ids == ids  # type: ignore[attr-defined]


def test_c14_wrong_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        chat(client, model="gpt-9")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], id="c15_parts"),
        pytest.param(
            [{"role": "developer", "content": "Be brief"}, {"role": "user", "content": "Hi"}], id="c16_developer"
        ),
        pytest.param(
            [
                {"role": "user", "content": "2+3?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a":2}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "5"},
            ],
            id="c17_c18_tool_messages",
        ),
        pytest.param([{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}], id="empty_system"),
        pytest.param([{"role": "user", "content": "Hi", "name": None}], id="null_name"),
        pytest.param([{"role": "user", "content": "😀 \u0000 é"}], id="odd_characters"),
        pytest.param(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c"},
             {"role": "user", "content": "d"}], id="reasoning",
        ),
    ],
)  # fmt: skip
def test_messages_accepted(client: openai.OpenAI, messages: Any) -> None:
    assert chat(client, messages=messages, max_tokens=2).choices[0].message.role == "assistant"


def test_parts_equal_a_string(client: openai.OpenAI) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "ab"}, {"type": "text", "text": "cd"}]}]
    whole = [{"role": "user", "content": "abcd"}]
    assert chat(client, messages=parts).choices[0].message == chat(client, messages=whole).choices[0].message


def test_c19_empty_messages(raw: httpx.Client) -> None:
    refused(post_chat(raw, messages=[]), "messages")


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "user"}], "messages[0]"),
        ([{"role": "user", "content": None}], "messages[0]"),
        ([{"role": "king", "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"content": "x"}], "messages[0].role"),
        (["x"], "messages[0]"),
        ("x", "messages"),
    ],
)
def test_messages_refused(raw: httpx.Client, messages: Any, param: str) -> None:
    refused(post_chat(raw, messages=messages), param)


def test_c20_max_completion_tokens(client: openai.OpenAI) -> None:
    answer = chat(client, max_completion_tokens=1, ignore_eos=True)
    assert answer.usage is not None and answer.usage.completion_tokens == 1
    assert answer.choices[0].finish_reason == "length"


def test_c21_max_tokens_is_an_alias(client: openai.OpenAI) -> None:
    answer = chat(client, max_tokens=2, ignore_eos=True)
    assert answer.usage is not None and answer.usage.completion_tokens == 2


def test_c22_max_completion_tokens_wins(client: openai.OpenAI) -> None:
    answer = chat(client, max_tokens=9, max_completion_tokens=3, ignore_eos=True)
    assert answer.usage is not None and answer.usage.completion_tokens == 3


def test_c23_context(client: openai.OpenAI, raw: httpx.Client, live: Live) -> None:
    limit = live.state.models[0].runner.max_model_len
    long = [{"role": "user", "content": "a b c d " * limit}]
    assert raises_400(chat, client, messages=long).code == "context_length_exceeded"
    refused(post_chat(raw, max_tokens=limit), "max_tokens", code="context_length_exceeded")
    refused(post_chat(raw, max_completion_tokens=limit), "max_completion_tokens", code="context_length_exceeded")
    full = [5] * limit
    refused(post_completion(raw, prompt=full), "prompt", code="context_length_exceeded")
    assert post_completion(raw, prompt=full[1:], max_tokens=1).status_code == 200
    huge = [{"role": "user", "content": "z" * 500_000}]  # refused without being tokenized
    refused(post_chat(raw, messages=huge), "messages", code="context_length_exceeded")


def test_default_is_the_rest_of_the_context(client: openai.OpenAI, live: Live) -> None:
    limit = live.state.models[0].runner.max_model_len
    answer = chat(client, max_tokens=None, ignore_eos=True, truncate_prompt_tokens=limit - 3, messages=[
        {"role": "user", "content": "a b c d " * limit}
    ])  # fmt: skip
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (limit - 3, 3)
    assert answer.choices[0].finish_reason == "length"


def test_c24_eos(client: openai.OpenAI, live: Live) -> None:
    eos = live.codec.eos_token_id
    answer = chat(client, logit_bias={str(eos): 100}, temperature=0)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == ""
    assert answer.choices[0].stop_reason is None  # type: ignore[attr-defined]
    assert answer.usage is not None and answer.usage.completion_tokens == 1


@pytest.mark.parametrize("value", [0, -1])
def test_c25_max_tokens_range(raw: httpx.Client, value: int) -> None:
    refused(post_chat(raw, max_tokens=value), "max_tokens")
    refused(post_chat(raw, max_completion_tokens=value), "max_completion_tokens")


def test_ignore_eos_and_min_tokens(client: openai.OpenAI, live: Live) -> None:
    eos = str(live.codec.eos_token_id)
    forever = chat(client, ignore_eos=True, max_tokens=12, logit_bias={eos: 100}, temperature=0)
    assert forever.usage is not None and forever.usage.completion_tokens == 12
    assert forever.choices[0].finish_reason == "length" and forever.choices[0].message.content == ""
    least = chat(client, min_tokens=5, max_tokens=12, logit_bias={eos: 90}, temperature=0)
    assert least.usage is not None and least.usage.completion_tokens == 6
    assert least.choices[0].finish_reason == "stop"


def test_min_tokens_above_max(raw: httpx.Client) -> None:
    refused(post_chat(raw, min_tokens=25), "min_tokens")


def test_continue_final_message_and_echo(client: openai.OpenAI, live: Live) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "There are"}]
    answer = chat(
        client, messages=messages, continue_final_message=True, add_generation_prompt=False, echo=True,
        return_token_ids=True,
    )  # fmt: skip
    assert live.codec.decode(answer.prompt_token_ids).endswith("<|assistant|>There are")  # type: ignore[attr-defined]
    assert (answer.choices[0].message.content or "").startswith("There are")
    plain = chat(client, messages=messages, continue_final_message=True)
    assert answer.choices[0].message.content == "There are" + (plain.choices[0].message.content or "")


def test_add_generation_prompt_false(client: openai.OpenAI, live: Live) -> None:
    answer = chat(client, add_generation_prompt=False, return_token_ids=True)
    assert live.codec.decode(answer.prompt_token_ids).endswith("<|end|>")  # type: ignore[attr-defined]


def test_token_ids(client: openai.OpenAI, live: Live) -> None:
    answer = chat(client, return_token_ids=True, n=2)
    for choice in answer.choices:
        ids = choice.token_ids  # type: ignore[attr-defined]
        assert live.codec.decode([one for one in ids if one not in live.codec.special_ids]) == choice.message.content
    total = sum(len(choice.token_ids) for choice in answer.choices)  # type: ignore[attr-defined]
    assert answer.usage is not None and answer.usage.completion_tokens == total
