"""Votes among programs: the matrix, the sandbox that fills it, and people who know some of the tests."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.config import ConfigError, load_config
from server.launch import endpoint_of
from server.votes.executor import CodeExecutor
from tests.server.conformance.helpers import MODEL, refused
from tests.server.live import Live
from tests.server.votes.stored import post_verdict, post_vote, say, stored

CODES = ("print(1)", "print(2)", "print(1)", "print(3)")
TESTS = [{"input": "", "expected": "1"}, {"input": "a", "expected": "2"}, {"input": "b", "expected": "1"}]
PASSES = [[True, False, True], [False, True, False], [False] * 3, [True, False, True], [False, False, False]]
# the third sample has no code
SAMPLES = [f"So:\n```python\n{code}\n```\n" for code in CODES]
RECORDS = [{"text": text} for text in (*SAMPLES[:2], "I do not know.", *SAMPLES[2:])]


def post_code(raw: httpx.Client, passes: Any = None, **fields: Any) -> httpx.Response:
    code = {"tests": TESTS} | ({} if passes is None else {"passes": passes})
    return post_vote(raw, **{"samples_data": RECORDS, "code": code} | fields)


def hold_code(raw: httpx.Client, passes: Any = None, **fields: Any) -> dict[str, Any]:
    response = post_code(raw, passes, **fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


@dataclass
class Sandbox:
    """Passes a program that prints a test's expected output, and does not run it."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    pause_s: float = 0.0
    answer: bytes | None = None
    status: int = 200


@pytest.fixture
def sandbox(live: Live) -> Iterator[Sandbox]:
    found = Sandbox()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            found.asked.append(asked)
            time.sleep(found.pause_s)
            passes = [[f"print({test['expected']})" == code for test in asked["tests"]] for code in asked["codes"]]
            answer = json.dumps({"passes": passes}).encode() if found.answer is None else found.answer
            self.send_response(found.status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}/run"
    executor = CodeExecutor(found.url, 2.0)
    live.state.code_executor = executor
    yield found
    live.state.code_executor = None
    asyncio.run_coroutine_threadsafe(executor.close(), live.loop).result()
    server.shutdown()
    server.server_close()


def test_a_matrix_that_comes_along(raw: httpx.Client) -> None:
    """A row per sample; those without a code are no part of it."""
    vote = hold_code(raw, PASSES)
    assert (vote["answer"], vote["confidence"], vote["status"]) == ("print(1)", 4 / 5, "open")
    assert vote["representative"] == {"index": 0, "text": SAMPLES[0]}
    voting = vote["voting"]
    assert [(row["id"], row["members"], row["weight"]) for row in voting["clusters"]] == [
        (0, [0, 3], 4),
        (1, [1], 1),
        (4, [4], 0),
    ]
    assert (voting["codes"], voting["extract"], voting["abstain_rate"]) == ([0, 1, 3, 4], "code", 0.2)
    assert [(row["id"], row["input"], row["expected"], row["passes"]) for row in voting["tests"]] == [
        (0, "", "1", [True, False, True, False]),
        (1, "a", "2", [False, True, False, False]),
        (2, "b", "1", [True, False, True, False]),
    ]
    assert voting["next_test"] == 0 and voting["cert"] is None


def test_tests_that_are_known_decide(raw: httpx.Client) -> None:
    vote = say(raw, hold_code(raw, PASSES), "accept", test_id=1)
    assert (vote["answer"], vote["voting"]["tests"][1]["validated"]) == ("print(2)", True)
    assert vote["representative"]["index"] == 1
    assert [row["weight"] for row in vote["voting"]["clusters"]] == [0, 1, 0]
    dropped = say(raw, hold_code(raw, PASSES), "reject", test_id=1)
    assert [row["members"] for row in dropped["voting"]["clusters"]] == [[0, 3], [1, 4]]


def test_clusters_are_named_by_samples(raw: httpx.Client) -> None:
    vote = hold_code(raw, PASSES)
    refused(post_verdict(raw, vote, "accept", cluster_id=3), "cluster_id")
    left = say(raw, vote, "reject", cluster_id=0)
    assert (left["answer"], left["voting"]["clusters"][0]["rejected"]) == ("print(2)", True)
    done = say(raw, left, "accept", cluster_id=4)
    assert (done["answer"], done["status"], done["representative"]["index"]) == ("print(3)", "accepted", 4)
    refused(post_verdict(raw, done, "accept", test_id=0), status=400, code="vote_closed")


def test_a_corrected_test_brings_its_results(raw: httpx.Client) -> None:
    vote = hold_code(raw, PASSES)
    refused(post_verdict(raw, vote, "correct", test_id=0, value="3"), "passes")
    for passes in ([True], [True] * 5):
        refused(post_verdict(raw, vote, "correct", test_id=0, value="3", passes=passes), "passes")
    refused(post_verdict(raw, vote, "correct", test_id=3, value="3"), "test_id")
    assert stored(raw, vote) == vote
    after = say(raw, vote, "correct", test_id=0, value="2", passes=[False, True, False, False])
    assert (after["answer"], after["voting"]["tests"][0]["expected"]) == ("print(2)", "2")
    assert after["log"][0]["passes"] == [False, True, False, False]


def test_the_log_alone_leads_to_the_state(raw: httpx.Client) -> None:
    vote = hold_code(raw, PASSES)
    vote = say(raw, vote, "correct", test_id=2, value="2", passes=[False, True, False, True])
    vote = say(raw, vote, "reject", test_id=0)
    vote = say(raw, vote, "reject", cluster_id=1)
    again = hold_code(raw, PASSES)
    for entry in vote["log"]:
        again = say(raw, again, **{name: entry[name] for name in entry if name not in ("time_s", "caller")})
    for name in ("answer", "confidence", "status", "representative"):
        assert again[name] == vote[name]
    assert again["voting"] | {"id": None} == vote["voting"] | {"id": None}


def test_a_sandbox_fills_the_matrix(raw: httpx.Client, sandbox: Sandbox) -> None:
    """It sees every program once, and afterwards the corrected test alone."""
    vote = hold_code(raw)
    assert sandbox.asked == [{"codes": ["print(1)", "print(2)", "print(3)"], "tests": TESTS}]
    assert [row["passes"] for row in vote["voting"]["tests"]] == [
        [True, False, True, False],
        [False, True, False, False],
        [True, False, True, False],
    ]
    after = say(raw, vote, "correct", test_id=2, value="3")
    assert sandbox.asked[1:] == [
        {"codes": ["print(1)", "print(2)", "print(3)"], "tests": [{"input": "b", "expected": "3"}]}
    ]
    assert (after["answer"], after["log"][0]["passes"]) == ("print(3)", [False, False, False, True])
    assert "passes" not in say(raw, after, "reject", test_id=2)["log"][1]
    said = say(raw, vote, "correct", test_id=0, value="2", passes=[True] * 4)
    assert len(sandbox.asked) == 2 and said["log"][2]["passes"] == [True] * 4
    hold_code(raw, PASSES)
    assert len(sandbox.asked) == 2


def test_generated_programs_are_run_there(raw: httpx.Client, live: Live, sandbox: Sandbox) -> None:
    texts = [live.codec.encode_plain(text) for text in SAMPLES]
    live.runner.behaviour.script = lambda request, choice: texts[choice]
    vote = hold_code(raw, samples_data=None, prompt="Print 1.", model=MODEL, max_tokens=100, voting={"samples": 4})
    assert (vote["answer"], vote["voting"]["codes"]) == ("print(1)", [0, 1, 2, 3])
    assert [row["members"] for row in vote["voting"]["clusters"]] == [[0, 2], [1], [3]]
    assert vote["representative"]["text"] == vote["response"]["choices"][0]["text"] == SAMPLES[0]
    after = say(raw, vote, "accept", test_id=1)
    assert after["representative"]["text"] == SAMPLES[1] and after["response"] == vote["response"]


def test_verdicts_wait_for_the_sandbox_and_for_each_other(raw: httpx.Client, sandbox: Sandbox) -> None:
    """The second is about what the first has made."""
    vote = hold_code(raw)
    sandbox.pause_s = 0.3
    answers: list[httpx.Response] = []
    slow = threading.Thread(target=lambda: answers.append(post_verdict(raw, vote, "correct", test_id=0, value="3")))
    slow.start()
    while len(sandbox.asked) < 2:
        time.sleep(0.005)
    assert stored(raw, vote) == vote  # whoever reads need not wait
    quick = post_verdict(raw, vote, "accept", cluster_id=4)
    slow.join()
    assert [entry["verdict"] for entry in quick.json()["log"]] == ["correct", "accept"]
    assert answers[0].status_code == 200
    refused(post_verdict(raw, vote, "correct", test_id=0, value="3"), status=400, code="vote_closed")
    assert len(sandbox.asked) == 2


@pytest.mark.parametrize(
    ("answer", "status"),
    [(b"", 200), (b"{}", 200), (b'{"passes": [[true]]}', 200), (b'{"passes": [[1, 1, 1]]}', 200), (None, 500)],
)
def test_a_sandbox_that_fails(raw: httpx.Client, sandbox: Sandbox, answer: bytes | None, status: int) -> None:
    vote = hold_code(raw)
    sandbox.answer, sandbox.status = answer, status
    for response in (post_code(raw), post_verdict(raw, vote, "correct", test_id=0, value="2")):
        error = refused(response, None, 500, "code_executor_failed")
        assert sandbox.url not in error["message"] and response.headers["x-should-retry"] == "false"
    assert stored(raw, vote) == vote


def test_without_a_program_nothing_is_run(raw: httpx.Client, sandbox: Sandbox) -> None:
    vote = hold_code(raw, samples_data=[{"text": "no idea"}])
    assert (vote["answer"], vote["representative"], vote["voting"]["clusters"]) == (None, None, [])
    assert sandbox.asked == []


def test_recorded_answers_are_programs(raw: httpx.Client) -> None:
    records = [{"text": "a", "answer": "print(1)"}, {"text": "b", "answer": "print(2)"}]
    vote = hold_code(raw, [[True, True, True], [False, False, True]], samples_data=records)
    assert (vote["answer"], vote["voting"]["extract"]) == ("print(1)", None)


def test_enough_has_been_asked(raw: httpx.Client) -> None:
    code = {"tests": TESTS, "passes": PASSES, "max_rounds": 1}
    vote = hold_code(raw, code=code)
    assert vote["voting"]["next_test"] is not None
    assert say(raw, vote, "reject", test_id=1)["voting"]["next_test"] is None


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "code.passes", "no_code_executor"),
        ({"code": {}}, "code.tests", None),
        ({"code": {"tests": []}}, "code.tests", None),
        ({"code": {"tests": [{"input": ""}]}}, "code.tests[0].expected", None),
        ({"code": {"tests": [TESTS[0] | {"weight": 1}]}}, "code.tests[0].weight", None),
        ({"code": {"tests": TESTS, "language": "c"}}, "code.language", None),
        ({"code": {"tests": TESTS, "passes": PASSES[:4]}}, "code.passes", None),
        ({"code": {"tests": TESTS, "passes": [*PASSES[:4], [True]]}}, "code.passes[4]", None),
        ({"code": {"tests": TESTS, "passes": [*PASSES[:4], [1, 1, 1]]}}, "code.passes[4][0]", None),
        ({"code": {"tests": TESTS, "passes": PASSES, "max_rounds": 0}}, "code.max_rounds", None),
        ({"code": {"tests": TESTS, "passes": PASSES}, "voting": {"rule": "pc"}}, "voting.rule", None),
    ],
)
def test_what_is_wrong_is_named(raw: httpx.Client, fields: dict[str, Any], param: str, code: str | None) -> None:
    refused(post_code(raw, **fields), param, 400, code)


def test_nobody_knows_what_will_be_drawn(raw: httpx.Client, live: Live) -> None:
    drawn = {"samples_data": None, "prompt": "x", "model": MODEL, "max_tokens": 5}
    refused(post_code(raw, PASSES, **drawn), "code.passes", 400, None)
    refused(post_code(raw, **drawn), "code.passes", 400, "no_code_executor")
    assert live.runner.requests == []


def test_the_operator_says_where_programs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("code_executor: {url: 'http://127.0.0.1:1/run', timeout_s: 5, api_key_env: SANDBOX_KEY}")
    settings = load_config({}, {}, file).code_executor
    assert settings is not None
    assert (str(settings.url), settings.timeout_s) == ("http://127.0.0.1:1/run", 5)
    monkeypatch.delenv("SANDBOX_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"'code_executor\.api_key_env': the variable SANDBOX_KEY is not set"):
        endpoint_of(CodeExecutor, settings, "code_executor")
    monkeypatch.setenv("SANDBOX_KEY", "secret")
    endpoint_of(CodeExecutor, settings, "code_executor")
    for flags, environment in (
        ({"code_executor": "http://b/"}, {}),
        ({}, {"DRAFTHOUSE_CODE_EXECUTOR": "http://b/"}),
    ):
        found = load_config(flags, environment, file).code_executor
        assert found is not None and (str(found.url), found.timeout_s, found.api_key_env) == ("http://b/", 30, None)
    assert load_config({}, {}).code_executor is None
    for wrong in (
        "ftp://x",
        "x",
        {"timeout_s": 3},
        {"url": "http://x", "colour": 1},
        {"url": "http://x", "timeout_s": 0},
    ):
        with pytest.raises(ConfigError, match="code_executor"):
            load_config({"code_executor": wrong}, {})
