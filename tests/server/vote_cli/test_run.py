"""`drafthouse vote run`: what it asks of servers of several kinds, what it writes, and what it says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from samplers.contract import SamplerError
from server.cli import app
from server.vote_cli.remote import CannotGoOn
from tests.server.vote_cli.runs import drawn, lines, questions, samples, three
from tests.server.vote_cli.servers import END, FakeServer, alternatives, error
from voting.samples_file import SamplesFileError, read_problems
from voting.token_statistics import confidences, entropies

OPENAI = {"extras": False, "refuses": ("return_token_ids", "return_tokens_as_token_ids", "max_tokens")}
VLLM = {"extras": False, "lists_end": True}
LLAMA_CPP = {"extras": False, "most_choices": 1}


def test_what_a_drafthouse_server_gives(tmp_path: Path) -> None:
    problems, server = three(tmp_path), FakeServer()
    assert drawn(problems, server) == 0
    assert [body["n"] for body in server.bodies] == [4, 4, 4]
    assert server.bodies[0].keys() == {
        "model", "messages", "n", "seed", "logprobs", "top_logprobs", "return_token_ids",
    }  # fmt: skip
    assert server.bodies[0]["model"] == "first"
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "Problem a?"}]
    assert [(one["id"], one["prompt"], one["gold"]) for one in lines(problems)] == [
        (name, f"Problem {name}?", "20") for name in "abc"
    ]
    for one in samples(problems):
        assert one["token_ids"][-1] == END and one["n_tokens"] == 3
        assert one["mean_logprob"] * 3 == pytest.approx(one["sum_logprob"])
        assert one["answer"] == one["text"].rpartition(" ")[2]
        assert "counted" not in one  # everything is
        assert len(one["topk_entropy"]) == len(one["confs"]) == 2  # chats do not list the ending token


def test_mean_logprob_and_statistics_by_hand(tmp_path: Path) -> None:
    problems, server = three(tmp_path), FakeServer(lists_end=True)
    drawn(problems, server, samples=1, top_logprobs=3)
    (body, *_), one = server.bodies, samples(problems)[0]
    logprobs = [entry["logprob"] for entry in server._choice(body, True, 0)["logprobs"]["content"]]
    table = [alternatives(logprob, 3) for logprob in logprobs]
    assert one["mean_logprob"] == pytest.approx(math.fsum(logprobs) / 3, rel=1e-12)
    assert one["topk_entropy"] == pytest.approx(entropies(table).tolist(), rel=1e-12)
    assert one["confs"] == pytest.approx(confidences(table).tolist(), rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "tokens", "counted"),
    [(OPENAI, 2, "listed"), (VLLM, 3, None), (LLAMA_CPP, 2, "listed"), ({**VLLM, "usage": False}, 3, "listed")],
    ids=["openai", "vllm", "llama.cpp", "no usage"],
)
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_what_is_counted_is_recorded(
    tmp_path: Path, kind: dict[str, Any], tokens: int, counted: str | None, endpoint: str
) -> None:
    problems, server = three(tmp_path), FakeServer(**kind)
    assert drawn(problems, server, endpoint=endpoint, max_tokens=7) == 0
    assert {one["n_tokens"] for one in samples(problems)} == {tokens}
    assert {one.get("counted") for one in samples(problems)} == {counted}
    assert all("token_ids" not in one for one in samples(problems))
    limit = "max_completion_tokens" if kind is OPENAI else "max_tokens"
    assert all(body[limit] == 7 and len(body.keys() & {"max_tokens", "max_completion_tokens"}) == 1
               for body in server.bodies)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ({"most_choices": 1}, [1] * 10),
        ({"ignores_n": True}, [10, *[1] * 9]),  # the first one said 10 and got 1
        ({"most_choices": 4}, None),
        ({}, [10]),
    ],
)
def test_fewer_choices_per_request(tmp_path: Path, kind: dict[str, Any], asked: list[int] | None) -> None:
    problems = questions(tmp_path, {"prompt": "p", "gold": 20})
    server = FakeServer(**kind, refuses=())
    server.failing = lambda body: (
        error(400, "n is too large", "n") if kind.get("most_choices", 128) < body["n"] else None
    )
    assert drawn(problems, server, samples=10, methods="sc") == 0
    sizes = [body["n"] for body in server.bodies]
    assert sizes == asked if asked else sum(sizes) == 10 and max(sizes) <= 4
    assert [one["index"] for one in samples(problems)] == list(range(10))
    assert len({body["seed"] for body in server.bodies}) == len(server.bodies)
    assert all(0 <= body["seed"] < 2**31 for body in server.bodies)


def test_more_samples_leave_those_there_were(tmp_path: Path) -> None:
    problems = three(tmp_path)
    drawn(problems, FakeServer(), samples=3, out=tmp_path / "few")
    drawn(problems, FakeServer(), samples=5, out=tmp_path / "many")
    for few, many in zip(read_problems(tmp_path / "few"), read_problems(tmp_path / "many"), strict=True):
        assert many.samples[:3] == few.samples
    drawn(problems, FakeServer(), samples=3, out=tmp_path / "other", seed=1)
    assert read_problems(tmp_path / "other") != read_problems(tmp_path / "few")


def test_problems_have_seeds_of_their_own(tmp_path: Path) -> None:
    server = FakeServer()
    drawn(three(tmp_path), server)
    assert len({body["seed"] for body in server.bodies}) == 3


def test_a_program_may_have_fewer_samples(tmp_path: Path) -> None:
    problems, server = three(tmp_path), FakeServer(program=2)
    assert drawn(problems, server, sampler='{"name": "priority"}', k="2") == 0
    assert [len(line["samples"]) for line in lines(problems)] == [2, 2, 2] and len(server.bodies) == 3
    assert server.bodies[0]["sampler"] == {"name": "priority"}


@pytest.mark.parametrize(
    ("kind", "methods", "words"),
    [
        ({"logprobs": False, "extras": False}, "sc,pc", "'pc' needs 'mean_logprob' of sample 0"),
        ({"refuses": ("logprobs",), "extras": False}, "ppl", "it does not take logprobs = true"),
        ({"most_top": 5}, "iew", "'iew' needs 'topk_entropy' of sample 0.*top_logprobs = 20 .HTTP 400: must be at"),
        ({"most_top": 5}, "deepconf", "'deepconf' needs 'confs' of sample 0"),
    ],
)
def test_without_the_numbers_a_rule_needs(tmp_path: Path, kind: dict[str, Any], methods: str, words: str) -> None:
    problems = three(tmp_path)
    with pytest.raises(CannotGoOn, match=words):
        drawn(problems, FakeServer(**kind), methods=methods)
    assert not problems.with_suffix(".samples.jsonl").exists()  # another try may have other settings


def test_rules_that_count_need_no_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = three(tmp_path)
    assert drawn(problems, FakeServer(logprobs=False, extras=False), methods="sc") == 0
    assert {one["mean_logprob"] for one in samples(problems)} == {None}
    shown = capsys.readouterr()
    assert "no log-probabilities" in shown.err and "accuracy" in shown.out


def test_completions(tmp_path: Path) -> None:
    problems, server = three(tmp_path), FakeServer(most_top=5)
    assert drawn(problems, server, endpoint="completions", top_logprobs=5) == 0
    assert server.bodies[0]["prompt"] == "Problem a?" and server.bodies[0]["logprobs"] == 5
    assert all(len(one["topk_entropy"]) == 2 for one in samples(problems))
    server = FakeServer(refuses=("return_tokens_as_token_ids",))
    drawn(problems, server, endpoint="completions", top_logprobs=5, out=tmp_path / "texts")
    assert all(one.entropies is None for line in read_problems(tmp_path / "texts") for one in line.samples)


def test_what_changes_the_samples_is_never_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = FakeServer(refuses=("temperature",))
    assert drawn(three(tmp_path), server, temperature=0.7) == 1
    assert "failed: a, b, c: HTTP 400: Unsupported parameter: 'temperature'" in capsys.readouterr().err


def test_an_instruction_is_asked_and_not_taken_for_an_answer(tmp_path: Path) -> None:
    problems, server = three(tmp_path), FakeServer()
    make = server._choice

    def confident(body: dict[str, Any], chat: bool, j: int) -> dict[str, Any]:
        choice = make(body, chat, j)
        choice["message"]["content"] = "It is 20.\nConfidence: 85"
        return choice

    server._choice = confident  # type: ignore[method-assign]
    extract = '{"name": "auto", "allow_last_number": true}'
    assert drawn(problems, server, methods="sc,verbalised", extract=extract) == 0
    (message,) = server.bodies[0]["messages"]
    assert message["content"].startswith("Problem a?\n\nSolve the problem") and "Confidence: 50" in message["content"]
    assert {one["answer"] for one in samples(problems)} == {"20"}


def test_messages_are_sent_as_they_are(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
    ]
    problems, server = questions(tmp_path, {"messages": messages, "answer": "20"}), FakeServer()
    assert drawn(problems, server) == 0
    assert server.bodies[0]["messages"] == messages
    assert lines(problems)[0]["prompt"] == "Be brief.\n\nx"


def test_one_problem_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems, server = three(tmp_path), FakeServer()
    server.failing = lambda body: error(400, "no such thing") if "b?" in str(body["messages"]) else None
    assert drawn(problems, server) == 1
    shown = capsys.readouterr()
    assert "failed: b: HTTP 400: no such thing" in shown.err and "2 of 3 problems are in" in shown.err
    assert "2 problems, 4 samples each" in shown.out
    assert drawn(problems, again := FakeServer()) == 0
    assert len(again.bodies) == 1 and [line["id"] for line in lines(problems)] == ["a", "b", "c"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(tmp_path: Path, status: int) -> None:
    problems, server = three(tmp_path), FakeServer()
    refused: set[str] = set()

    def busy(body: dict[str, Any]) -> httpx.Response | None:
        asked = json.dumps(body)
        if asked in refused:
            return None
        refused.add(asked)
        return error(status, "busy", **{"retry-after": "0"})

    server.failing = busy
    assert drawn(problems, server) == 0
    assert len(refused) == len(server.bodies) == 3


def test_hopeless_answers_end_the_run(tmp_path: Path) -> None:
    server = FakeServer(failing=lambda body: error(401, "wrong key"))
    with pytest.raises(CannotGoOn, match="HTTP 401: wrong key"):
        drawn(three(tmp_path), server)


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{"index": 0}]}, {"choices": 3}, [], "x"])
def test_answers_that_are_none(tmp_path: Path, answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server = FakeServer(failing=lambda body: httpx.Response(200, json=answer))
    assert drawn(three(tmp_path), server) == 1
    assert "failed: a, b, c: the server's answer" in capsys.readouterr().err


def test_log_probabilities_that_are_no_numbers(tmp_path: Path) -> None:
    problems, server = three(tmp_path), FakeServer(extras=False)
    make = server._choice

    def broken(body: dict[str, Any], chat: bool, j: int) -> dict[str, Any]:
        choice = make(body, chat, j)
        if j == 1:
            choice["logprobs"]["content"][0]["logprob"] = -9999.0
        if j == 2:
            choice |= {"message": {"content": None}, "logprobs": {"content": []}}
        return choice

    server._choice = broken  # type: ignore[method-assign]
    assert drawn(problems, server) == 0
    first = samples(problems)[:3]
    assert [one.get("abstain_reason") for one in first] == [None, "bad_logprob", "no_tokens"]
    assert first[1]["mean_logprob"] is None is first[2]["mean_logprob"]


def test_the_tables_are_those_of_a_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems, out = three(tmp_path), tmp_path / "run.json"
    drawn(problems, FakeServer(), samples=8, methods="sc,rpc,iew", json=out)
    shown = capsys.readouterr().out
    arguments = ("--methods", "sc,rpc,iew", "--repeats", "2", "--re-extract", "--json", str(tmp_path / "replay.json"))
    samples_file = str(problems.with_suffix(".samples.jsonl"))
    result = CliRunner().invoke(app, ["vote", "replay", samples_file, *arguments])
    assert result.exit_code == 0
    assert json.loads(out.read_text())["results"] == json.loads((tmp_path / "replay.json").read_text())["results"]
    assert "Voting: problems.samples.jsonl, 3 problems, 8 samples each" in shown
    plain = CliRunner().invoke(app, ["vote", "coverage", samples_file])  # the answers are in the file
    assert plain.exit_code == 0


def test_without_right_answers_there_is_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = questions(tmp_path, {"prompt": "p"}, {"prompt": "q", "gold": 20})
    assert drawn(problems, FakeServer()) == 0
    shown = capsys.readouterr()
    assert shown.out == "" and "without 'gold'" in shown.err
    assert [line["id"] for line in lines(problems)] == ["0", "1"]


def test_the_key_is_sent_and_not_written(tmp_path: Path) -> None:
    problems, server = three(tmp_path), FakeServer()
    drawn(problems, server, api_key="sk-secret")
    assert {headers["authorization"] for headers in server.headers} == {"Bearer sk-secret"}
    assert "sk-secret" not in problems.with_suffix(".samples.jsonl").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "all samples of a problem are the same"),
        ({"methods": "best"}, "unknown voting rule 'best'"),
        ({"k": "8"}, "'k' must be at most the number of samples, 4"),
        (
            {"methods": "deepconf", "params": '{"deepconf": {"mode": "online"}}'},
            "'warmup' must be at most",
        ),
        ({"methods": "iew", "top_logprobs": 5}, "'iew' has topk 20 and --top-logprobs is 5"),
        ({"extract": "bxed"}, "'extract' must be one of"),
        ({"sampler": "{"}, "'sampler' is no JSON"),
    ],
)
def test_options_are_checked_before_anything_is_drawn(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    server = FakeServer()
    with pytest.raises(SamplerError, match=words):
        drawn(three(tmp_path), server, **options)
    assert not server.headers


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"gold": 3}, "line 1: a problem has either a 'prompt' or 'messages'"),
        ({"prompt": "p", "messages": []}, "either a 'prompt' or 'messages'"),
        ({"prompt": ""}, "'prompt' must be a string that is not empty"),
        ({"prompt": "p", "difficulty": 3}, "'difficulty' is not a field of a problem; known: id, prompt"),
        ({"prompt": "p", "gold": 3, "answer": 3}, "two names of one field"),
        ({"prompt": "p", "gold": [3]}, "'gold' must be a string or a number"),
        ({"messages": [{"content": "p"}]}, "'messages' must be a list of objects with a 'role'"),
    ],
)
def test_malformed_problems(tmp_path: Path, record: dict[str, Any], words: str) -> None:
    with pytest.raises(SamplesFileError, match=words):
        drawn(questions(tmp_path, record), FakeServer())


def test_two_problems_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(SamplesFileError, match="line 2: two problems have the id 'a'"):
        drawn(questions(tmp_path, {"id": "a", "prompt": "p"}, {"id": "a", "prompt": "q"}), FakeServer())
    with pytest.raises(SamplesFileError, match="'messages' need --endpoint chat"):
        drawn(questions(tmp_path, {"messages": [{"role": "user"}]}), FakeServer(), endpoint="completions")


def test_errors_on_the_command_line_are_one_line_and_status_2(tmp_path: Path) -> None:
    arguments = ["vote", "run", str(three(tmp_path)), "--url", "http://127.0.0.1:1/v1", "--retries", "0"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert "http://127.0.0.1:1/v1 cannot be reached" in result.output and "Traceback" not in result.output
