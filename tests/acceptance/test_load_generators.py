"""Requests as load generators and evaluation clients shape them, read as naively as they read the answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.acceptance.reference import CODE, MODEL, QUESTIONS

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
REQUESTS = 20
OUTPUT = 24


async def events(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> AsyncIterator[str]:
    async with client.stream("POST", path, json=body, headers={"x-request-id": "load-1"}) as response:
        assert response.status_code == 200 and response.headers["x-request-id"] == "load-1"
        async for line in response.aiter_lines():
            if line:
                yield line


async def separate_usage(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> int:
    """Usage is read from a chunk without choices only; every other one is indexed."""
    completion, chunks, done = None, 0, False
    async for line in events(client, path, body):
        data = line.removeprefix("data: ")
        if done := data == "[DONE]":
            continue
        chunk = json.loads(data)
        if choices := chunk["choices"]:
            assert isinstance(choices[0]["delta"] if path == CHAT else choices[0]["text"], (dict, str))
            chunks += 1
        elif usage := chunk.get("usage"):
            completion = usage["completion_tokens"]
    assert done and chunks > 0 and completion is not None
    return int(completion)


async def six_bytes(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> int:
    """Six bytes are cut off every line, `choices[0]` is taken unseen, the mere word `error` is fatal."""
    chunks = 0
    async for line in events(client, path, body):
        data = line[6:]
        if data == "[DONE]":
            break
        chunk = json.loads(data)
        assert "error" not in chunk and chunk["object"] in ("chat.completion.chunk", "text_completion")
        chunks += bool(chunk["choices"][0]["delta"].get("content") if path == CHAT else chunk["choices"][0]["text"])
    return chunks


def vllm_bench(path: str, i: int) -> dict[str, Any]:
    shared = {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    if path == CHAT:
        content = [{"type": "text", "text": QUESTIONS[i % len(QUESTIONS)]}]
        return {"messages": [{"role": "user", "content": content}], "max_completion_tokens": OUTPUT} | shared
    prompts = [CODE[i % len(CODE)], [326, 288, 13, 93, 311], [CODE[0]]]
    ask = {"prompt": prompts[i % 3], "repetition_penalty": 1.0, "max_tokens": OUTPUT, "logprobs": None}
    return shared | ask


def guidellm(path: str, i: int) -> dict[str, Any]:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": MODEL, "stream": True, "stream_options": options, "stop": None, "ignore_eos": True}
    if path == CHAT:
        return body | {"messages": [{"role": "user", "content": QUESTIONS[i % 6]}], "max_completion_tokens": OUTPUT}
    return body | {"prompt": CODE[i % 6], "max_tokens": OUTPUT}


def aiperf(path: str, i: int) -> dict[str, Any]:
    body = {"model": MODEL, "stream": True, "ignore_eos": True, "min_tokens": OUTPUT}
    if path == CHAT:
        message = {"role": "user", "name": None, "content": QUESTIONS[i % 6]}
        return body | {"messages": [message], "max_completion_tokens": OUTPUT}
    return body | {"prompt": [CODE[i % 6]], "max_tokens": OUTPUT}


def llmperf(path: str, i: int) -> dict[str, Any]:
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": QUESTIONS[i % 6]}]
    return {"model": MODEL, "messages": messages, "stream": True, "max_tokens": OUTPUT, "stream_interval": 1}


async def run(server: str, path: str, shape: Any, read: Any) -> list[int]:
    async with httpx.AsyncClient(base_url=server, timeout=120) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/v1/models")).json()["data"][0]["root"]
        tasks = [asyncio.create_task(read(client, path, shape(path, i))) for i in range(REQUESTS)]
        await asyncio.sleep(0.05)
        assert (await client.get("/health")).status_code == 200
        return list(await asyncio.gather(*tasks))


@pytest.mark.parametrize("path", [TEXT, CHAT])
@pytest.mark.parametrize("shape", [vllm_bench, guidellm])
async def test_usage_readers(server: str, path: str, shape: Any) -> None:
    assert await run(server, path, shape, separate_usage) == [OUTPUT] * REQUESTS


@pytest.mark.parametrize(("path", "shape"), [(TEXT, aiperf), (CHAT, aiperf), (CHAT, llmperf)])
async def test_careless_readers(server: str, path: str, shape: Any) -> None:
    assert all(count > 0 for count in await run(server, path, shape, six_bytes))


def test_many_choices_of_a_chat(http: httpx.Client) -> None:
    """As a code benchmark asks for samples."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTIONS[0]}], "temperature": 0.8, "n": 10}
    answer = http.post(CHAT, json=body | {"top_p": 0.95, "max_completion_tokens": 64}).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(10))
    assert all(choice["message"]["content"] for choice in answer["choices"])
