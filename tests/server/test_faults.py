"""What goes wrong while generating: engine failures, overload, clients that leave. Checklist points 60, 61, 91, 94."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from samplers.contract import SamplerError
from tests.server.conformance.helpers import MESSAGES, MODEL, data_lines, post_chat, post_completion, refused
from tests.server.live import Live

SECRET = "a secret of the engine"


@pytest.mark.parametrize("streamed", [False, True])
def test_c61_error_before_the_first_token_is_a_status(raw: httpx.Client, live: Live, streamed: bool) -> None:
    live.runner.behaviour.fail_after = 0
    error = refused(post_chat(raw, stream=streamed), status=503, code="overloaded")
    assert error["type"] == "server_error"


def test_c61_error_after_the_first_token_is_an_event(raw: httpx.Client, live: Live) -> None:
    live.runner.behaviour.fail_after = 2
    for post in (post_chat, post_completion):
        response = post(raw, stream=True, ignore_eos=True)
        assert response.status_code == 200
        events = data_lines(response)
        assert set(events[-1]) == {"error"} and set(events[-1]["error"]) == {"message", "type", "param", "code"}
        assert all("error" not in event for event in events[:-1]) and len(events) > 1
        refused(post(raw, ignore_eos=True), status=503, code="overloaded")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("after", [0, 3])
def test_c94_no_trace(raw: httpx.Client, live: Live, streamed: bool, after: int) -> None:
    live.runner.behaviour.raise_after = (after, RuntimeError(SECRET))
    response = post_chat(raw, stream=streamed, ignore_eos=True)
    assert SECRET not in response.text and "Traceback" not in response.text
    assert response.headers["x-request-id"]
    if streamed and after:
        assert data_lines(response)[-1]["error"]["code"] == "internal_error"
    else:
        refused(response, status=500, code="internal_error")
        assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("streamed", [False, True])
def test_c91_overloaded(raw: httpx.Client, live: Live, streamed: bool) -> None:
    live.runner.behaviour.overloaded = True
    response = post_chat(raw, stream=streamed)
    refused(response, status=503, code="overloaded")
    assert int(response.headers["retry-after"]) >= 1


def test_too_large(raw: httpx.Client, live: Live) -> None:
    live.runner.behaviour.too_large = True
    refused(post_chat(raw), code="context_length_exceeded")


def test_sampler_errors_of_the_runner_name_the_field(raw: httpx.Client, live: Live) -> None:
    live.runner.behaviour.raise_after = (0, SamplerError("'sampler.x' is wrong", "sampler.x"))
    refused(post_chat(raw), "sampler.x")


def test_dead_engine(raw: httpx.Client, live: Live) -> None:
    live.runner.behaviour.dead = True
    refused(raw.get("/health"), status=503, code="overloaded")
    refused(post_completion(raw), status=503, code="overloaded")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("code", "status"), [("constraint_unsatisfiable", 400), ("internal_error", 500), ("sampler", 500)]
)
def test_no_choice_succeeded(raw: httpx.Client, live: Live, code: str, status: int, streamed: bool) -> None:
    live.runner.behaviour.errors = {0: (0, code), 1: (0, code)}
    error = refused(post_chat(raw, n=2, stream=streamed), status=status)
    assert error["code"] == ("constraint_unsatisfiable" if status == 400 else "internal_error")


def test_some_choice_succeeded(raw: httpx.Client, live: Live) -> None:
    live.runner.behaviour.errors = {0: (2, "constraint_unsatisfiable")}
    fields = {"n": 2, "ignore_eos": True, "max_tokens": 6}
    whole = post_chat(raw, **fields).json()["choices"]
    assert [choice["finish_reason"] for choice in whole] == ["length", "length"]
    assert whole[0]["stop_reason"] == "error" and whole[0]["failure"]["code"] == "constraint_unsatisfiable"
    assert whole[1]["stop_reason"] is None and "failure" not in whole[1]
    events = data_lines(post_chat(raw, stream=True, **fields))
    ends = {c["index"]: c for event in events for c in event["choices"] if c["finish_reason"]}
    assert ends[0]["failure"] == whole[0]["failure"] and "failure" not in ends[1]
    assert "drafthouse" in events[-1]
    text = "".join(c["delta"].get("content", "") for event in events for c in event["choices"] if c["index"] == 0)
    assert text == whole[0]["message"]["content"]


def test_failure_in_one_of_many_prompts(raw: httpx.Client, live: Live) -> None:
    live.runner.behaviour.fail_after = 1
    refused(post_completion(raw, prompt=["a", "b", "c"], ignore_eos=True), status=503)
    live.wait(lambda: not live.runner.live)


# --- clients that leave ---------------------------------------------------------------------------------------


@pytest.fixture
def slow(live: Live) -> Iterator[Live]:
    """A server that takes seconds to answer."""
    live.runner.behaviour.step_s = 0.02
    yield live
    live.wait(lambda: not live.runner.live)


def open_request(live: Live, path: str, **fields: Any) -> socket.socket:
    """A request on a socket of its own."""
    prompt = {"messages": MESSAGES} if "chat" in path else {"prompt": "x"}
    body = json.dumps({"model": MODEL, "max_tokens": 400, "ignore_eos": True, **prompt, **fields}).encode()
    host, port = live.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("fields", [{"stream": True}, {}, {"stream": True, "n": 4}, {"n": 4}])
def test_c60_disconnect_ends_the_work(slow: Live, path: str, fields: dict[str, Any]) -> None:
    connection = open_request(slow, path, **fields)
    slow.wait(lambda: slow.runner.live)
    if "stream" in fields:
        assert connection.recv(4096)
    connection.close()
    began = time.monotonic()
    slow.wait(lambda: not slow.runner.live)
    assert time.monotonic() - began < 1  # far less than the 8 s the tokens would take
    slow.wait(lambda: slow.state.in_flight == 0)


@pytest.mark.parametrize("fields", [{"stream": True}, {}])
def test_c60_disconnect_with_many_prompts(slow: Live, fields: dict[str, Any]) -> None:
    connection = open_request(slow, "/v1/completions", prompt=["a", "b", "c", "d"], **fields)
    slow.wait(lambda: len(slow.runner.live) == 4)
    connection.close()
    slow.wait(lambda: not slow.runner.live)


def test_disconnect_before_the_first_token(live: Live) -> None:
    live.runner.behaviour.step_s = 5
    connection = open_request(live, "/v1/chat/completions", stream=True)
    live.wait(lambda: live.runner.live)
    connection.close()
    live.wait(lambda: not live.runner.live, 1)


def test_a_client_that_does_not_read_costs_no_queue(slow: Live) -> None:
    connection = open_request(slow, "/v1/chat/completions", stream=True, n=8, logprobs=True, top_logprobs=20)
    slow.wait(lambda: slow.runner.live)
    time.sleep(0.3)
    connection.close()


def test_a_stop_string_ends_one_choice(raw: httpx.Client, live: Live) -> None:
    texts = ["b" * 99, "aaa stop aaa"]
    live.runner.behaviour.script = lambda request, choice: live.codec.encode_plain(texts[choice])
    choices = post_chat(raw, n=2, stop="stop", max_tokens=20, return_token_ids=True).json()["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["length", "stop"]
    assert choices[1]["message"]["content"] == "aaa "
    assert [choice for _, choice in live.runner.aborted] == [1]


@pytest.mark.parametrize("burst", [1, 3, 50])
def test_results_do_not_depend_on_how_outputs_merge(raw: httpx.Client, live: Live, burst: int) -> None:
    fields = {"stop": "e", "logprobs": True, "top_logprobs": 1, "n": 3, "max_tokens": 40, "return_token_ids": True}
    expected = post_chat(raw, **fields).json()
    live.runner.behaviour.burst = burst
    answer = post_chat(raw, **fields).json()
    assert (answer["choices"], answer["usage"]) == (expected["choices"], expected["usage"])
