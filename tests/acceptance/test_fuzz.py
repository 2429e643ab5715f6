"""Requests nobody should send: generated from the server's own document, and a table of nasty bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.acceptance.reference import MODEL

pytestmark = pytest.mark.slow
CHAT, TEXT, VOTES = "/v1/chat/completions", "/v1/completions", "/v1/votes"
POSTS = (CHAT, TEXT, "/tokenize", "/detokenize")
REQUIRED = {CHAT: ("model", "messages"), TEXT: ("model", "prompt"), "/tokenize": (), "/detokenize": ("tokens",)}
KEPT = REQUIRED | {VOTES: ("model", "messages", "prompt", "samples_data")}
EXAMPLES = 80  # per operation and mode: one chat in ten is answered, and hypothesis draws constants from all our code
MAX_TOKENS = 8
DEEP = 100_000


def check_error(response: httpx.Response, *statuses: int) -> None:
    """A client's error in the one shape there is."""
    assert 400 <= response.status_code < 500, f"{response.status_code}: {response.text[:500]}"
    assert not statuses or response.status_code in statuses, f"{response.status_code}: {response.text[:500]}"
    assert response.headers["content-type"] == "application/json" and response.headers["x-request-id"]
    body = response.json()
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and 0 < len(error["message"]) < 2000
    assert isinstance(error["type"], str)
    assert all(error[name] is None or isinstance(error[name], str) for name in ("param", "code"))


@pytest.fixture(autouse=True)
def alive(http: httpx.Client) -> Iterator[None]:
    """Whatever a test has sent, the next request is answered."""
    yield
    assert http.get("/health").status_code == 200
    response = http.post(TEXT, json={"model": MODEL, "prompt": "def f(x):", "max_tokens": 2})
    assert response.status_code == 200, response.text


# --- generated from the document


def send(server: str, case: Case) -> int:
    """The status; refusals have our shape, and everything is as the document says."""
    response = case.call(base_url=server, timeout=60)
    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
    case.validate_response(response, checks=checks)
    if response.status_code >= 400:
        headers = [(name, value) for name, values in response.headers.items() for value in values]
        check_error(httpx.Response(response.status_code, headers=headers, content=response.content))
    return response.status_code


def thin(case: Case, kept: set[int]) -> None:
    """Leaves a few optional fields, as all together exclude each other, and answers that do not take long."""
    body, path = case.body, case.operation.path
    if not isinstance(body, dict) or path not in (CHAT, TEXT, VOTES):
        return
    for at, name in enumerate(sorted(body.keys() - set(KEPT[path]))):
        if at not in kept:
            del body[name]
    for name, most in (("max_tokens", MAX_TOKENS), ("max_completion_tokens", MAX_TOKENS), ("n", 3), ("best_of", 4)):
        value = body.get(name)
        if (value is None and name == "max_tokens") or (type(value) in (int, float) and value > most):
            body[name] = most


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_document(server: str, http: httpx.Client, mode: GenerationMode) -> None:
    """Every operation, with data as described and with data that is not."""
    schema = schemathesis.openapi.from_dict(http.get("/openapi.json").json())
    answered: set[tuple[str, int]] = set()
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {*POSTS, "/v1/models", "/metrics", "/health"}
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and operation.path not in POSTS:
            continue

        @seed(1)
        @settings(max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=list(HealthCheck),
                  phases=[Phase.generate])  # fmt: skip
        @given(operation.as_strategy(mode), st.sets(st.integers(0, 80), max_size=8))
        def attempt(case: Case, kept: set[int]) -> None:
            thin(case, kept)
            answered.add((case.operation.path, send(server, case)))

        attempt()
    expected = 200 if mode is GenerationMode.POSITIVE else 400
    assert {path for path, status in answered if status == expected} >= set(POSTS)


# --- bytes


def posted(http: httpx.Client, path: str, content: bytes, kind: str = "application/json") -> httpx.Response:
    return http.post(path, content=content, headers={"content-type": kind})


def body(path: str) -> dict[str, Any]:
    """A small valid body."""
    return {
        CHAT: {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
        TEXT: {"model": MODEL, "prompt": "x", "max_tokens": 2},
        "/tokenize": {"prompt": "x"},
        "/detokenize": {"tokens": [300]},
    }[path]


MALFORMED = {
    "empty": b"", "blank": b"  \n ", "brace": b"{", "half": b'{"model": "', "trailing": b'{"model": "x"} x',
    "single quotes": b"{'model': 'x'}", "trailing comma": b'{"model": "x",}', "null": b"null", "list": b"[]",
    "string": b'"x"', "number": b"1e999", "form": b"model=x&prompt=y", "byte order mark": b"\xef\xbb\xbf{}",
    "utf-16": '{"model": "x"}'.encode("utf-16"), "NUL": b"\0", "NULs inside": b'{"model": "a\0b"}',
    "not UTF-8": b'{"model": "\xff\xfe", "prompt": "x"}', "overlong": b'{"model": "\xc0\x80"}',
    "encoded surrogate": b'{"model": "\xed\xa0\x80"}', "deep lists": b"[" * DEEP, "deep objects": b'{"a":' * DEEP,
    "closed deep lists": b"[" * DEEP + b"]" * DEEP, "long number": b'{"model": ' + b"9" * DEEP + b"}",
    "deep field": b'{"messages": ' + b"[" * DEEP + b"]" * DEEP + b"}",
}  # fmt: skip


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(http: httpx.Client, path: str, content: bytes) -> None:
    check_error(posted(http, path, content), 400)


@pytest.mark.parametrize("path", POSTS)
def test_too_large(http: httpx.Client, path: str) -> None:
    content = b'{"prompt": "' + b"x" * 20_000_000 + b'"}'
    check_error(posted(http, path, content), 413)
    check_error(http.post(path, content=iter([content[at : at + 2**20] for at in range(0, len(content), 2**20)])), 413)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "application/json; charset=utf-16", "x", ""])
def test_other_content_types(http: httpx.Client, path: str, kind: str) -> None:
    """The body alone decides, as clients without the header expect; what is not JSON stays refused."""
    assert posted(http, path, json.dumps(body(path)).encode(), kind).status_code == 200
    check_error(posted(http, path, b"model=x", kind), 400)


# --- values

WRONG = (True, -1, 2**31, 2**63, 2**64, 10**400, 1.5, "", "x", "\0", "1", [], [None], [[]], [{}], {}, {"x": 1}, [-1])
RAW_WRONG = {
    "NaN": b"NaN", "Infinity": b"Infinity", "-Infinity": b"-Infinity", "1e999": b"1e999", "-1e999": b"-1e999",
    "surrogate": b'"\\ud800"', "surrogate list": b'["\\udfff"]', "surrogate name": b'{"\\ud800": 1}',
}  # fmt: skip
NUMBERS = (
    "temperature", "top_p", "top_k", "min_p", "n", "max_tokens", "min_tokens", "seed", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "priority", "prompt_logprobs",
)  # fmt: skip


def fields_of(http: httpx.Client, path: str) -> list[str]:
    """What the document lists for the body."""
    document = http.get("/openapi.json").json()
    media = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    return list(document["components"]["schemas"][media["schema"]["$ref"].rpartition("/")[2]]["properties"])


@pytest.mark.parametrize("path", POSTS)
def test_wrong_types_of_every_field(http: httpx.Client, path: str) -> None:
    """No value of any field is more than a refusal; most are at least that."""
    names = fields_of(http, path)
    assert len(names) >= 3 or path == "/detokenize"
    refused = 0
    for name in names:
        for value in WRONG:
            response = http.post(path, json=body(path) | {name: value})
            if response.status_code != 200:
                check_error(response)
                refused += 1
    assert refused > len(names) * len(WRONG) / 2


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("raw", RAW_WRONG.values(), ids=RAW_WRONG.keys())
def test_values_json_should_not_have(http: httpx.Client, path: str, raw: bytes) -> None:
    for name in fields_of(http, path):
        whole = json.dumps({key: value for key, value in body(path).items() if key != name})
        content = (
            whole[:-1].encode() + (b"," if len(whole) > 2 else b"") + json.dumps(name).encode() + b":" + raw + b"}"
        )
        check_error(posted(http, path, content), 400, 404)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-(2**63) - 1, -(10**400), 10**400, 1e308, "1", True, [1]], ids=lambda v: str(v)[:12])
def test_absurd_numbers(http: httpx.Client, path: str, name: str, value: Any) -> None:
    response = http.post(path, json=body(path) | {name: value})
    check_error(response, 400)
    assert (response.json()["error"]["param"] or "").startswith(name)


@pytest.mark.parametrize(("path", "name"), [(path, name) for path in POSTS for name in REQUIRED[path]])
def test_missing(http: httpx.Client, path: str, name: str) -> None:
    for fields in ({key: value for key, value in body(path).items() if key != name}, body(path) | {name: None}):
        response = http.post(path, json=fields)
        check_error(response, 400)
        assert response.json()["error"]["param"] == name


def nasty_prompts() -> list[Any]:
    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    return [[], [[]], [1, "x"], [[1], "x"], [-1], [2**40], [10**400], [1.5], [True], [None], [["x"]], deep, {},
            "x" * 10**6, [300] * 5000, ["x"] * 100_000, [[300]] * 100_000]  # fmt: skip


@pytest.mark.parametrize("prompt", nasty_prompts(), ids=lambda prompt: repr(prompt)[:20])
def test_prompts(http: httpx.Client, prompt: Any) -> None:
    check_error(http.post(TEXT, json=body(TEXT) | {"prompt": prompt}), 400)


MESSAGES: tuple[Any, ...] = (
    [], {}, "x", [None], [[]], ["x"], [{}], [{"role": "user"}], [{"content": "x"}], [{"role": 1, "content": "x"}],
    [{"role": "user", "content": 1}], [{"role": "user", "content": [1]}],
    [{"role": "user", "content": [{"type": "x"}]}],
    [{"role": "user", "content": [{"type": "text"}]}], [{"role": "user", "content": [{"type": "text", "text": 1}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    [{"role": "user", "content": "x" * 10**6}], [{"role": "user", "content": "x"}] * 50_000,
)  # fmt: skip


@pytest.mark.parametrize("messages", MESSAGES, ids=lambda messages: repr(messages)[:40])
def test_messages(http: httpx.Client, messages: Any) -> None:
    response = http.post(CHAT, json=body(CHAT) | {"messages": messages})
    check_error(response, 400)
    assert (response.json()["error"]["param"] or "").startswith("messages")


SAMPLERS: tuple[Any, ...] = (
    [None], [[]], [1], [{}], [{"name": None}], [{"name": "top_k", "top_k": 10**400}], [{"name": "top_k", "x": 1}],
    ["top_k"] * 17, ["iid", "gumbel"], [{"name": "temperature", "temperature": []}], "\0",
    {"name": "x" * 10**5},
    [{"name": "logit_bias", "logit_bias": {"9" * 30: 1}}], [{"name": "logit_bias", "logit_bias": {"-1": 1}}],
    [{"name": "allowed_token_ids", "allowed_token_ids": [10**400]}], {"sampler": {"sampler": {}}},
    [{"name": "bad_words_ids", "bad_words_ids": [[]]}], [{"name": "bad_words_ids", "bad_words_ids": [[10**20]]}],
)  # fmt: skip


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: repr(sampler)[:40])
def test_samplers(http: httpx.Client, sampler: Any) -> None:
    for fields in ({"sampler": sampler}, {"vllm_xargs": {"sampler": sampler}}):
        check_error(http.post(TEXT, json=body(TEXT) | fields), 400)


OTHER_FIELDS: tuple[dict[str, Any], ...] = (
    {"stop": ["x"] * 2000}, {"stop": "x" * 10_000}, {"stop": [""]}, {"stop_token_ids": [10**400]},
    {"logprob_token_ids": [1]}, {"logit_bias": {"1": "x"}}, {"logit_bias": {"1": 10**400}}, {"logit_bias": {"": 1}},
    {"logit_bias": {"²": 1}}, {"allowed_token_ids": []}, {"allowed_token_ids": [-1]}, {"bad_words": [""]},
    {"vllm_xargs": []}, {"vllm_xargs": {"x": 1}}, {"vllm_xargs": {"sampler": "[" * DEEP}},
    {"vllm_xargs": {"sampler": '{"name": NaN}'}}, {"n": 128, "prompt": ["x"] * 1000}, {"model": "x" * 10**6},
    {"model": f"{MODEL}@"}, {"model": f"{MODEL}@\0"}, {"model": "../../etc/passwd"}, {"guided_json": {}},
    {"request_id": "é"}, {"rid": "x" * 1000}, {"stream_options": {"include_usage": "yes"}, "stream": True},
    {"sampler_order": "none"}, {"logprobs_mode": "x"}, {"n": 2, "best_of": 1}, {"max_tokens": 0},
)  # fmt: skip


@pytest.mark.parametrize("fields", OTHER_FIELDS, ids=lambda fields: repr(fields)[:40])
def test_other_fields(http: httpx.Client, fields: dict[str, Any]) -> None:
    check_error(http.post(TEXT, json=body(TEXT) | fields), 400, 404)


# --- routes and headers

ROUTES = (
    ("GET", "/nope"), ("POST", "/v1"), ("GET", "/v1/"), ("POST", "/v1/embeddings"), ("GET", "/v1/models/%00"),
    ("GET", "/v1/models/..%2f..%2fetc%2fpasswd"), ("GET", "/v1/models/" + "x" * 5000), ("GET", "/%ff"),
    ("GET", "/v1/chat/completions/"), ("GET", "/tokenizer_info?model=nope"), ("POST", "/v1/responses"),
    ("GET", CHAT), ("PUT", TEXT), ("DELETE", "/v1/models"), ("PATCH", "/health"), ("PROPFIND", "/v1/models"),
    ("POST", "/"), ("POST", "/metrics"), ("OPTIONS", TEXT), ("TRACE", "/health"),
)  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda value: value[:40])
def test_routes(http: httpx.Client, method: str, path: str) -> None:
    check_error(http.request(method, path), 400, 404, 405)


def test_headers(http: httpx.Client) -> None:
    for value in (b"x" * 5000, b"\xff\xfe", b"", b"a\tb"):
        response = http.get("/v1/models", headers={"x-request-id": value, "authorization": value})
        assert response.status_code == 200 and response.headers["x-request-id"].startswith("req_")


def test_errors_of_a_stream_are_whole_answers(http: httpx.Client) -> None:
    for path in (CHAT, TEXT):
        for fields in islice(OTHER_FIELDS, 8):
            check_error(http.post(path, json=body(path) | fields | {"stream": True}), 400)
