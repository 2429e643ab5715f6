"""Checklist points 80-84: text completions."""

from __future__ import annotations

import httpx
import openai
import pytest

from tests.server.conformance.helpers import PROMPT, complete, data_lines, post_completion, refused
from tests.server.live import Live


def texts(answer: openai.types.Completion) -> list[str]:
    return [choice.text for choice in answer.choices]


def test_c80_prompt_forms(client: openai.OpenAI, live: Live) -> None:
    ids = live.codec.encode_plain(PROMPT)
    other = live.codec.encode_plain("class A:\n")
    one = texts(complete(client))
    assert texts(complete(client, prompt=[PROMPT])) == one
    assert texts(complete(client, prompt=ids)) == one
    assert texts(complete(client, prompt=[ids])) == one
    both = complete(client, prompt=[PROMPT, "class A:\n"], n=2)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert texts(both)[:1] == one
    assert texts(both) == [*texts(complete(client, n=2)), *texts(complete(client, prompt=other, n=2))]
    assert both.object == "text_completion" and both.id.startswith("cmpl-")
    assert both.usage is not None and both.usage.prompt_tokens == len(ids) + len(other)


def test_c80_many_prompts(client: openai.OpenAI) -> None:
    answer = complete(client, prompt=[f"x = {i}" for i in range(40)], max_tokens=3)
    assert [choice.index for choice in answer.choices] == list(range(40))
    assert answer.choices[7].text == complete(client, prompt="x = 7", max_tokens=3).choices[0].text


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ("", "prompt"), ([], "prompt"), ([""], "prompt[0]"), ([[]], "prompt[0]"), (["a", 3], "prompt[1]"),
        ([1, "a"], "prompt"), ([4096], "prompt[0]"), ([[1], [2, 4096]], "prompt[1][1]"), ([-1], "prompt[0]"),
        ([1.5], "prompt[0]"), (3, "prompt"), ({"a": 1}, "prompt"), ([True], "prompt[0]"), ([[[1]]], "prompt[0][0]"),
    ],
)  # fmt: skip
def test_c80_wrong_prompts(raw: httpx.Client, prompt: object, param: str) -> None:
    error = refused(post_completion(raw, prompt=prompt))
    assert error["param"].startswith(param)


def test_c81_default_is_sixteen(client: openai.OpenAI) -> None:
    answer = complete(client, max_tokens=None, ignore_eos=True)
    assert answer.usage is not None and answer.usage.completion_tokens == 16


def test_c82_best_of(client: openai.OpenAI, raw: httpx.Client) -> None:
    every = complete(client, n=6, max_tokens=8)
    means = []
    for choice in complete(client, n=6, max_tokens=8, return_token_ids=True, logprobs=0).choices:
        means.append((choice.cumulative_logprob / len(choice.token_ids), choice.text))  # type: ignore[attr-defined]
    best = complete(client, n=2, best_of=6, max_tokens=8)
    assert texts(best) == [text for _, text in sorted(means, key=lambda one: -one[0])[:2]]
    assert [choice.index for choice in best.choices] == [0, 1]
    assert best.usage == every.usage
    for fields in (
        {"n": 3, "best_of": 2},
        {"best_of": 2, "stream": True},
        {"best_of": 2, "echo": True},
        {"best_of": 0},
    ):
        refused(post_completion(raw, **fields), "best_of")


def test_c83_suffix(raw: httpx.Client) -> None:
    refused(post_completion(raw, suffix="x"), "suffix")


def test_c84_echo_with_stream(client: openai.OpenAI, raw: httpx.Client) -> None:
    whole = texts(complete(client, echo=True, n=2))
    events = data_lines(post_completion(raw, echo=True, n=2, stream=True))
    for index in (0, 1):
        parts = [c["text"] for event in events for c in event["choices"] if c["index"] == index]
        assert "".join(parts) == whole[index] and parts[0].startswith(PROMPT)
    assert whole[0] == PROMPT + texts(complete(client))[0]


def test_zero_tokens(client: openai.OpenAI, raw: httpx.Client) -> None:
    refused(post_completion(raw, max_tokens=0), "max_tokens")
    refused(post_completion(raw, max_tokens=-1), "max_tokens")
    answer = complete(client, max_tokens=0, echo=True, n=2)
    assert texts(answer) == [PROMPT, PROMPT]
    assert answer.usage is not None and answer.usage.completion_tokens == 0
    events = data_lines(post_completion(raw, max_tokens=0, echo=True, stream=True, logprobs=1))
    assert events[0]["choices"][0]["text"] == PROMPT and events[0]["choices"][0]["finish_reason"] == "length"


def test_special_tokens(client: openai.OpenAI, live: Live) -> None:
    fields = {"logit_bias": {"4": 100}, "max_tokens": 3, "temperature": 0}
    assert texts(complete(client, **fields)) == [""]
    assert texts(complete(client, skip_special_tokens=False, **fields)) == ["<|assistant|>" * 3]
    answer = complete(client, prompt="a<|user|>b", echo=True, max_tokens=0, add_special_tokens=False)
    assert texts(answer) == ["a<|user|>b"]


def test_truncation(client: openai.OpenAI, live: Live) -> None:
    ids = live.codec.encode_plain(PROMPT * 3)
    cut = complete(client, prompt=PROMPT * 3, truncate_prompt_tokens=4, return_token_ids=True)
    assert cut.choices[0].prompt_token_ids == ids[-4:]  # type: ignore[attr-defined]
    assert texts(cut) == texts(complete(client, prompt=ids[-4:]))
    fits = complete(client, prompt=[5] * 5000, truncate_prompt_tokens=-1, max_tokens=3, ignore_eos=True)
    assert fits.usage is not None
    assert fits.usage.prompt_tokens == live.state.models[0].runner.max_model_len - 3


def test_too_many_choices(raw: httpx.Client) -> None:
    refused(post_completion(raw, prompt=["a"] * 100, n=100), "prompt")


@pytest.mark.parametrize(("max_tokens", "expected"), [(0, "a\ufffd"), (1, "a日"), (2, "a日\ufffd")])
def test_generated_bytes_complete_an_echoed_character(
    raw: httpx.Client, live: Live, max_tokens: int, expected: str
) -> None:
    """The prompt ends inside a character whose bytes are tokens of their own; only its last byte can be generated."""
    text, sun = live.codec.encode_plain("a"), live.codec.encode_plain("日")
    assert len(sun) == 3
    answer = post_completion(
        raw, prompt=[*text, *sun[:2]], echo=True, logprobs=0, max_tokens=max_tokens, allowed_token_ids=sun[2:]
    )
    choice = answer.json()["choices"][0]
    assert choice["text"] == expected
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 1, 2][: 3 + max_tokens]
