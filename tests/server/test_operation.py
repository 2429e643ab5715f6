"""Keys, limits, draining, health, metrics, CORS: servers with other settings. Checklist points 88, 91, 93."""

from __future__ import annotations

import re
import threading

import httpx
import pytest

from server import offload
from server.app import create_app
from server.presets import PresetError
from server.state import Limits
from tests.server.conformance.helpers import MODEL, post_chat, post_completion, refused
from tests.server.live import Live, fake_state, start


@pytest.fixture
def other(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    """A server with the options of the test's mark."""
    live = start(fake_state(**request.param))
    with httpx.Client(base_url=live.url, timeout=30) as raw:
        yield live, raw
    live.stop()


@pytest.mark.parametrize("other", [{"api_keys": ("key-one", "key-two")}], indirect=True)
def test_c88_keys(other: tuple[Live, httpx.Client]) -> None:
    _, raw = other
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic key-one"},
        {"authorization": "key-one"},
    ):
        response = raw.get("/v1/models", headers=headers)
        refused(response, status=401, code="invalid_api_key")
        assert response.headers["x-request-id"] and response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["type"] == "authentication_error"
    refused(raw.post("/tokenize", json={"prompt": "x"}), status=401)
    for key in ("key-one", "key-two"):
        assert raw.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
    for path in ("/health", "/metrics", "/", "/openapi.json"):
        assert raw.get(path).status_code == 200


@pytest.mark.parametrize("other", [{"cors_origins": ("https://example.org",), "api_keys": ("k",)}], indirect=True)
def test_c93_cors(other: tuple[Live, httpx.Client]) -> None:
    _, raw = other
    origin = {"origin": "https://example.org"}
    preflight = raw.options("/v1/chat/completions", headers=origin | {"access-control-request-method": "POST"})
    assert preflight.status_code == 200
    refusal = raw.get("/v1/models", headers=origin)
    assert refusal.status_code == 401
    assert refusal.headers["access-control-allow-origin"] == "https://example.org"


def test_c93_without_cors(raw: httpx.Client) -> None:
    refused(raw.options("/v1/chat/completions"), status=405)


def test_body_limit(raw: httpx.Client, live: Live) -> None:
    limit = live.state.limits.body_bytes
    refused(raw.post("/v1/completions", content=b" " * (limit + 1)), status=413)

    def chunks():  # type: ignore[no-untyped-def]
        for _ in range(limit // 65536 + 2):
            yield b" " * 65536

    refused(raw.post("/v1/completions", content=chunks()), status=413)


@pytest.mark.parametrize("other", [{"limits": Limits(allow_chat_template=True)}], indirect=True)
def test_chat_template_where_allowed(other: tuple[Live, httpx.Client]) -> None:
    live, raw = other
    template = "{% for m in messages %}{{ m.content }}{{ word }}{% endfor %}"
    body = {"model": MODEL, "messages": [{"role": "user", "content": "ab"}], "chat_template": template}
    tokens = raw.post("/tokenize", json=body | {"chat_template_kwargs": {"word": "cd"}}).json()["tokens"]
    assert live.codec.decode(tokens) == "abcd"
    refused(raw.post("/tokenize", json=body | {"chat_template_kwargs": {"tokenize": True}}))
    for broken in ("{{ ", "{{ messages.x.y }}", "{{ 1 / 0 }}", "{% for i in range(10**9) %}{% endfor %}"):
        refused(raw.post("/tokenize", json=body | {"chat_template": broken}), "messages")


@pytest.mark.parametrize("other", [{"api_keys": ("schlüssel",)}], indirect=True)
def test_keys_beyond_ascii(other: tuple[Live, httpx.Client]) -> None:
    _, raw = other
    assert raw.get("/v1/models", headers={"authorization": "Bearer schlüssel".encode()}).status_code == 200
    refused(raw.get("/v1/models", headers={"authorization": "Bearer schluessel"}), status=401)
    refused(raw.get("/v1/nothing"), status=401)
    text = raw.get("/metrics").text
    assert 'drafthouse_http_requests_total{route="/v1/models",status="401"} 1.0' in text
    assert 'drafthouse_http_requests_total{route="unmatched",status="401"} 1.0' in text


def test_health_for_probes_without_a_body(raw: httpx.Client) -> None:
    response = raw.head("/health")
    assert response.status_code == 200 and not response.content


@pytest.mark.parametrize("other", [{"limits": Limits(choices_per_request=8, echoed_tokens=40)}], indirect=True)
def test_limits_are_checked_before_the_work(other: tuple[Live, httpx.Client], monkeypatch: pytest.MonkeyPatch) -> None:
    live, raw = other

    def refuse(*_: object) -> None:
        raise AssertionError("tokenized")

    monkeypatch.setattr(type(live.codec), "_encode", refuse)
    refused(post_completion(raw, prompt=["a"] * 9), "prompt")
    refused(post_completion(raw, prompt=["a", "b"], n=5), "prompt")
    refused(post_completion(raw, prompt=[[7] * 21] * 2, n=1, echo=True, logprobs=0), "n")
    refused(post_completion(raw, prompt="a" * 21, n=2, echo=True, logprobs=0), "n")
    assert post_completion(raw, prompt=[[7] * 20] * 2, echo=True, logprobs=0).status_code == 200


def test_large_answers_are_the_same_as_small_ones(raw: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built in a thread, choice by choice, or at once."""
    body = {"prompt": [[5, 6, 7], [8, 9]], "n": 3, "seed": 1, "logprobs": 2, "echo": True}
    small = post_completion(raw, **body).json()
    monkeypatch.setattr(offload, "LARGE", 1)
    large = post_completion(raw, **body).json()
    assert [small[key] for key in ("choices", "usage")] == [large[key] for key in ("choices", "usage")]
    assert list(small) == list(large)


@pytest.mark.parametrize("other", [{}], indirect=True)
def test_c91_draining(other: tuple[Live, httpx.Client]) -> None:
    live, raw = other
    assert raw.get("/health").json() == {"status": "ok"}
    live.runner.behaviour.step_s = 0.02
    answers: list[httpx.Response] = []
    running = threading.Thread(target=lambda: answers.append(post_chat(raw, ignore_eos=True)))
    running.start()
    live.wait(lambda: live.runner.live)
    live.state.draining = True
    with httpx.Client(base_url=live.url) as second:
        response = post_chat(second)
        refused(response, status=503, code="overloaded")
        assert response.headers["retry-after"]
        refused(second.get("/health"), status=503)
        assert second.get("/metrics").status_code == 200
    running.join()
    assert answers[0].status_code == 200 and answers[0].json()["usage"]["completion_tokens"] == 24
    live.wait(lambda: live.state.in_flight == 0)


NAMES = [
    "requests_running", "requests_waiting", "kv_pages_total", "kv_pages_in_use", "kv_pages_cached",
    "generated_tokens_total", "time_to_first_token_seconds_count", "inter_token_seconds_count",
]  # fmt: skip


@pytest.mark.parametrize("models", [1, 2])
def test_metrics(models: int) -> None:
    state = fake_state()
    state = type(state)(state.models[:models])
    live = start(state)
    with httpx.Client(base_url=live.url) as raw:
        post_chat(raw, ignore_eos=True)
        raw.get("/nope")
        text = raw.get("/metrics").text
    live.stop()
    label = r'\{model="drafthouse-tiny"\}' if models == 2 else ""
    for name in NAMES:
        assert re.search(rf"^drafthouse_{name}{label} [0-9.]+$", text, re.M), name
    inner = r'model="drafthouse-tiny",' if models == 2 else ""
    assert re.search(rf'^drafthouse_step_seconds\{{{inner}part="forward"\}} 0.5$', text, re.M)
    assert 'drafthouse_http_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'drafthouse_http_requests_total{route="unmatched",status="404"} 1.0' in text
    assert re.search(rf"^drafthouse_inter_token_seconds_count{label} 23.0$", text, re.M)


@pytest.mark.parametrize(
    ("preset", "complaint"),
    [
        ({"temperature": "hot"}, "temperature"), ({"sampler": "nonsense"}, "nonsense"), ({"colour": 1}, "colour"),
        ({"model": "x"}, "model"), ({"stream": True}, "stream"),
        ({"top_k": 3, "sampler": [{"name": "top_k", "top_k": 4}]}, "top_k"),
        ({"voting": {"rule": "x"}}, "voting"), ({"ngram_mix": 0.5}, "ngram_mix"), ({"typical_p": 0}, "typical_p"),
        ({"stop_token_ids": [999999]}, "stop_token_ids"), ({"max_tokens": -3}, "max_tokens"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"), ({"max_tokens": 10**9}, "max_tokens"),
        ({"min_tokens": 10, "max_tokens": 5}, "min_tokens"),
    ],
)  # fmt: skip
def test_unusable_presets_are_startup_errors(preset: dict[str, object], complaint: str) -> None:
    state = fake_state()
    state.models[0].presets = {"bad": preset}
    with pytest.raises(PresetError, match=f"preset 'bad'.*{complaint}"):
        create_app(state)


def test_page_and_document(raw: httpx.Client) -> None:
    page = raw.get("/")
    assert page.status_code == 200 and MODEL in page.text and page.headers["content-type"].startswith("text/html")
    document = raw.get("/openapi.json").json()
    assert "ChatBody" in document["components"]["schemas"]
    responses = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"200", "400", "401", "404", "413", "503"} <= set(responses) and "422" not in responses
    assert "text/event-stream" in responses["200"]["content"]
