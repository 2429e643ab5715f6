"""Short ways to say the requests of the conformance checklist."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion import Completion

MODEL = "drafthouse-tiny"
PROMPT = "def add(a, b):\n"
MESSAGES: list[Any] = [{"role": "user", "content": "Tom has 3 apples and buys 4. How many are there?"}]


def chat(client: openai.OpenAI, **fields: Any) -> ChatCompletion:
    """A short seeded chat; names the client's types do not know go into the extra body."""
    fields = {"model": MODEL, "messages": MESSAGES, "max_tokens": 24, "seed": 7, **fields}
    return client.chat.completions.create(**_split(fields))


def stream(client: openai.OpenAI, **fields: Any) -> list[ChatCompletionChunk]:
    fields = {"model": MODEL, "messages": MESSAGES, "max_tokens": 24, "seed": 7, **fields}
    return list(client.chat.completions.create(stream=True, **_split(fields)))


def complete(client: openai.OpenAI, **fields: Any) -> Completion:
    fields = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "seed": 7, **fields}
    return client.completions.create(**_split(fields))


KNOWN = {
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "seed", "n", "stop", "temperature", "top_p",
    "logprobs", "top_logprobs", "logit_bias", "stream_options", "presence_penalty", "frequency_penalty", "echo",
    "best_of", "suffix", "response_format", "tools", "tool_choice", "user", "extra_headers",
}  # fmt: skip


def _split(fields: dict[str, Any]) -> dict[str, Any]:
    known = KNOWN - ({"echo"} if "messages" in fields else set())
    extra = {name: value for name, value in fields.items() if name not in known}
    return {name: value for name, value in fields.items() if name in known} | {"extra_body": extra}


def post(raw: httpx.Client, path: str, **fields: Any) -> httpx.Response:
    base: dict[str, Any] = {"model": MODEL, "max_tokens": 24, "seed": 7}
    base |= {"messages": MESSAGES} if "chat" in path else {"prompt": PROMPT}
    return raw.post(path, json=base | fields)


def post_chat(raw: httpx.Client, **fields: Any) -> httpx.Response:
    return post(raw, "/v1/chat/completions", **fields)


def post_completion(raw: httpx.Client, **fields: Any) -> httpx.Response:
    return post(raw, "/v1/completions", **fields)


def data_lines(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON of every event before `[DONE]`."""
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def refused(response: httpx.Response, param: str | None = None, status: int = 400, code: Any = ...) -> dict[str, Any]:
    """The error object, after checking its form (point 85)."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(response.json()) == {"error"} and set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert error["code"] is None or isinstance(error["code"], str)
    if param is not None:
        assert error["param"] == param, error
    if code is not ...:
        assert error["code"] == code, error
    return dict(error)


def text_of(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index)


def raises_400(call: Any, *args: Any, **fields: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        call(*args, **fields)
    return caught.value
