"""Checklist points 85-94: errors. Those that need a server of their own are in test_operation.py."""

from __future__ import annotations

import http.client

import httpx
import openai
import pytest

from tests.server.conformance.helpers import MODEL, chat, post_chat, refused
from tests.server.live import Live


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/v1/detokenize"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'"x"', b"null", b'{"a":}', b"\xff\xfe", b'{"a":"\xff"}', b"[" * 100_000,
                b"9" * 5000, b'{"a":' * 50_000],
)  # fmt: skip
def test_c86_malformed_json(raw: httpx.Client, path: str, content: bytes) -> None:
    refused(raw.post(path, content=content), code="invalid_json")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 3}, "model"), ({"model": None}, "model"), ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 10**400}, "max_tokens"), ({"temperature": 10**400}, "temperature"),
        ({"messages": [{"role": "user", "content": {}}]}, "messages[0].content"),
        ({"stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"response_format": "json"}, "response_format"), ({"response_format": {}}, "response_format.type"),
        ({"sampler": 3}, "sampler"), ({"sampler": [[1]]}, "sampler[0]"),
        ({"sampler": {"name": "top_k", "top_k": 10**400}}, None), ({"vllm_xargs": "x"}, "vllm_xargs"),
    ],
)  # fmt: skip
def test_c87_wrong_types(raw: httpx.Client, fields: dict[str, object], param: str | None) -> None:
    refused(post_chat(raw, **fields), param)


def test_c87_unpaired_surrogates(raw: httpx.Client) -> None:
    body = '{"model":"drafthouse-tiny","messages":[{"role":"user","content":"a\\ud800b"}]}'
    refused(raw.post("/v1/chat/completions", content=body), "messages[0].content")
    refused(raw.post("/v1/chat/completions", content='{"model":"\\udc00","messages":[]}'), "model")
    refused(raw.post("/v1/chat/completions", content='{"guided_\\udc00":1}'))
    refused(raw.post("/tokenize", content='{"prompt":"\\ud83d"}'), "prompt")
    refused(post_chat(raw, **{"vllm_xargs": {"sampler": '{"name": "\\ud800"}'}}), "vllm_xargs.sampler.name")


def test_missing_fields(raw: httpx.Client) -> None:
    refused(raw.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]}), "model")
    refused(raw.post("/v1/chat/completions", json={"model": MODEL}), "messages")
    refused(raw.post("/v1/completions", json={"model": MODEL}), "prompt")


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/nope", "/v1/chat", "/v1/models/", "/favicon.ico"])
def test_c89_unknown_route(raw: httpx.Client, path: str) -> None:
    refused(raw.get(path), status=404)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/chat/completions"), ("DELETE", "/v1/models"), ("PUT", "/health"), ("POST", "/")]
)
def test_c90_wrong_method(raw: httpx.Client, method: str, path: str) -> None:
    response = raw.request(method, path)
    refused(response, status=405)
    assert response.headers["allow"]


def test_c92_request_id(client: openai.OpenAI, raw: httpx.Client) -> None:
    assert chat(client, extra_headers={"X-Request-Id": "mine-1"})._request_id == "mine-1"
    for response in (
        raw.get("/nope", headers={"x-request-id": "mine-2"}),
        post_chat(raw, request_id="mine-2"),
        post_chat(raw, rid="mine-2", stream=True),
        post_chat(raw, request_id="mine-2", temperature=-1),
    ):
        assert response.headers["x-request-id"] == "mine-2"
    both = raw.post("/v1/completions", json={"rid": "body"}, headers={"x-request-id": "header"})
    assert both.headers["x-request-id"] == "header"
    generated = {raw.get(path).headers["x-request-id"] for path in ("/health", "/nope", "/v1/models", "/metrics")}
    assert len(generated) == 4 and all(generated)
    assert raw.get("/health", headers={"x-request-id": "x" * 129}).headers["x-request-id"] != "x" * 129


def test_empty_bearer_token(live: Live) -> None:
    """Sent by harnesses that have no key; this package's own client refuses to write such a header."""
    connection = http.client.HTTPConnection(live.url.removeprefix("http://"))
    connection.request("GET", "/v1/models", headers={"Authorization": "Bearer "})
    assert connection.getresponse().status == 200
    connection.close()
