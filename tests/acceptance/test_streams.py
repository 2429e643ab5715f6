"""What stream readers rely on, and the small fields that clients send without being asked."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.acceptance.reference import CODE, MODEL, QUESTIONS, Reference

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def request(path: str, **fields: Any) -> dict[str, Any]:
    ask: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTIONS[0]}]}
    return {"model": MODEL, "max_tokens": 24, "seed": 5} | (ask if path == CHAT else {"prompt": CODE[0]}) | fields


def ok(http: httpx.Client, path: str, **fields: Any) -> dict[str, Any]:
    response = http.post(path, json=request(path, **fields))
    assert response.status_code == 200, response.text
    return dict(response.json())


def stream(http: httpx.Client, path: str, **fields: Any) -> list[dict[str, Any]]:
    """Chunks of a stream whose every byte is as it must be."""
    with http.stream("POST", path, json=request(path, stream=True, **fields)) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        raw = response.read()
    assert raw.endswith(b"data: [DONE]\n\n")
    events = raw.decode().split("\n\n")
    assert events.pop() == "" and events.pop() == "data: [DONE]"
    assert all(event.startswith("data: {") and "\n" not in event for event in events)
    chunks = [json.loads(event[6:]) for event in events]
    for name in ("id", "created", "model", "object"):
        assert len({chunk[name] for chunk in chunks}) == 1, name
    assert chunks[0]["object"] == ("chat.completion.chunk" if path == CHAT else "text_completion")
    assert all("error" not in chunk for chunk in chunks)
    return chunks


def text_of(path: str, choice: dict[str, Any]) -> str:
    return (choice["delta"].get("content") or "") if path == CHAT else choice["text"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_without_usage_every_chunk_has_a_choice(http: httpx.Client, path: str) -> None:
    for fields in ({}, {"n": 3}, {"stream_options": {"include_usage": False, "unheard_of": 1}}):
        chunks = stream(http, path, **fields)
        texts = [""] * fields.get("n", 1)  # type: ignore[call-overload]
        ends: list[int] = []
        for chunk in chunks:
            assert chunk.get("usage") is None
            choice = chunk["choices"][0]
            texts[choice["index"]] += text_of(path, choice)
            if choice["finish_reason"] is not None:
                ends.append(choice["index"])
        assert sorted(ends) == list(range(len(texts)))
        whole = ok(http, path, **{k: v for k, v in fields.items() if k != "stream_options"})["choices"]
        assert texts == [c["message"]["content"] if path == CHAT else c["text"] for c in whole]


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_usage_in_a_chunk_of_its_own(http: httpx.Client, path: str) -> None:
    *others, last = stream(http, path, stream_options={"include_usage": True})
    assert last["choices"] == [] and all(chunk["usage"] is None and chunk["choices"] for chunk in others)
    assert last["usage"] == ok(http, path)["usage"] | {"prompt_tokens_details": last["usage"]["prompt_tokens_details"]}


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_continuous_usage(http: httpx.Client, path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = stream(http, path, stream_options=options, ignore_eos=True, stop=None)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 24 and chunks[-1]["choices"] == []


def test_first_chunk_has_the_role_and_last_the_reason(http: httpx.Client) -> None:
    chunks = [chunk["choices"][0] for chunk in stream(http, CHAT)]
    assert chunks[0]["delta"] == {"role": "assistant", "content": ""}
    assert all("delta" in choice for choice in chunks)
    assert all("role" not in choice["delta"] for choice in chunks[1:])
    assert chunks[-1]["finish_reason"] in ("stop", "length")
    assert all(choice["finish_reason"] is None for choice in chunks[:-1])


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_refused_streams_use_the_status(http: httpx.Client, path: str) -> None:
    response = http.post(path, json=request(path, stream=True, temperature=-1))
    assert response.status_code == 400 and response.json()["error"]["param"] == "temperature"


NEUTRAL: list[tuple[str, dict[str, Any]]] = [
    (TEXT, {"stop": None}), (TEXT, {"stop": []}), (CHAT, {"stop": []}), (TEXT, {"logprobs": None}),
    (CHAT, {"stop": ["aa", "bb", "cc", "dd", "ee", "ff", "gg"]}),
    (CHAT, {"messages": [{"role": "user", "name": None, "content": "Hi"}]}),
    (CHAT, {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}),
    (TEXT, {"unknown_field": {"a": 1}}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields"), NEUTRAL, ids=lambda value: json.dumps(value)[:40])
def test_accepted_without_effect(http: httpx.Client, path: str, fields: dict[str, Any]) -> None:
    ok(http, path, **fields)


def test_empty_bearer(server: str) -> None:
    """Some clients send the header even when they have no key; httpx itself would refuse to."""
    url = urlsplit(server)
    connection = HTTPConnection(url.hostname or "", url.port)
    headers = {"authorization": "Bearer ", "content-type": "application/json"}
    connection.request("POST", TEXT, json.dumps(request(TEXT)), headers)
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize("count", [1, 7, 64])
def test_ignore_eos_gives_exactly_the_tokens_asked_for(http: httpx.Client, reference: Reference, count: int) -> None:
    for prompt in (reference.chat_ids(QUESTIONS[1]), reference.ids(CODE[1]), [reference.eos]):
        answer = ok(http, TEXT, prompt=prompt, ignore_eos=True, max_tokens=count, stop=None, return_token_ids=True)
        choice = answer["choices"][0]
        assert answer["usage"]["completion_tokens"] == len(choice["token_ids"]) == count
        assert choice["finish_reason"] == "length" and choice["text"]


def test_min_tokens_holds_back_eos_and_stop_strings(http: httpx.Client, reference: Reference) -> None:
    prompt = reference.chat_ids(QUESTIONS[0])
    fields = {"prompt": prompt, "temperature": 0, "max_tokens": 200, "return_token_ids": True}
    free = ok(http, TEXT, **fields)["choices"][0]
    assert free["finish_reason"] == "stop"
    least = len(free["token_ids"]) + 10
    held = ok(http, TEXT, min_tokens=least, stop=[free["text"][:3]], **fields)["choices"][0]
    assert len(held["token_ids"]) >= least
    assert reference.eos not in held["token_ids"][:least]


def test_models_name_their_root(http: httpx.Client) -> None:
    first = http.get("/v1/models").json()["data"][0]
    assert first["id"] == MODEL and first["root"] and first["max_model_len"] == 2048


def test_remote_tokenizer(http: httpx.Client, reference: Reference) -> None:
    """As an evaluation client uses a server's tokenizer instead of files of its own."""
    info = http.get("/tokenizer_info").json()
    assert info["eos_token"] == reference.tokenizer.eos_token and "chat_template" in info
    for name in ("eos_token", "bos_token"):
        body = {"prompt": info[name], "add_special_tokens": False}
        assert len(http.post("/tokenize", json=body).json()["tokens"]) == 1
    for text in (*CODE, *QUESTIONS, "naïve café 😀"):
        ids = http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"]
        assert ids == reference.ids(text)
        assert http.post("/detokenize", json={"tokens": ids}).json()["prompt"] == text
