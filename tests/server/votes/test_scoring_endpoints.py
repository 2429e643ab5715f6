"""Reward endpoints: what is sent, what is read, and every way in which they can fail."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from server.state import ServerState
from server.votes.problem import Problem
from server.votes.scoring import scored
from server.votes.scoring.endpoint import RewardEndpoint
from server.votes.scoring.scored import FAILED
from tests.acceptance.process import free_port
from tests.documented import Document
from tests.server.live import fake_state
from tests.voting.votes import sample, vote
from voting.contract import Sample

PROBLEM = Problem("How many? é")
TIMEOUT_S = 0.5
Writer = asyncio.StreamWriter


@dataclass
class Exchange:
    """A request as the endpoint saw it."""

    line: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Endpoint:
    """An HTTP server that answers as it is told to, byte by byte."""

    answer: Callable[[Writer], Awaitable[None]]
    url: str = ""
    connections: int = 0
    exchanges: list[Exchange] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *fields = head.strip().split("\r\n")
                headers = {name.lower(): value for name, value in (one.split(": ", 1) for one in fields)}
                body = await reader.readexactly(int(headers["content-length"]))
                self.exchanges.append(Exchange(line, headers, json.loads(body)))
                await self.answer(writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def endpoint(
    answer: Callable[[Writer], Awaitable[None]], timeout_s: float = TIMEOUT_S, api_key: str | None = None
) -> AsyncIterator[tuple[Endpoint, ServerState]]:
    """The endpoint, and a server that knows it as `judge`."""
    found = Endpoint(answer)
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    found.url = f"http://{host}:{port}/score"
    client = RewardEndpoint(found.url, timeout_s, api_key)
    try:
        yield found, fake_state(scorers={"judge": client})
    finally:
        await client.close()
        server.close()


def saying(content: bytes, status: str = "200 OK", *fields: str) -> Callable[[Writer], Awaitable[None]]:
    async def answer(writer: Writer) -> None:
        head = "".join(f"{one}\r\n" for one in (f"HTTP/1.1 {status}", f"content-length: {len(content)}", *fields))
        writer.write(head.encode() + b"\r\n" + content)

    return answer


def scores(*values: float | None) -> Callable[[Writer], Awaitable[None]]:
    return saying(json.dumps({"scores": values}).encode())


def samples_of(*texts: str) -> list[Sample]:
    return [sample(i, text[0], text=text, scores={}) for i, text in enumerate(texts)]


SAMPLES = samples_of("a", "b", "a", "c")


async def test_one_call_with_every_response_once() -> None:
    async with endpoint(scores(0.5, 2, None), api_key="secret") as (judge, state):
        samples = [*SAMPLES, sample(4, None, text="abstains", scores={})]
        found = await scored("judge", PROBLEM, samples, state)
        assert [one.scores.get("judge") for one in found.samples] == [
            0.5,
            2,
            0.5,
            pytest.approx(math.nan, nan_ok=True),
            None,
        ]
        assert found.flags == () and found.prompt_tokens == 0
        outcome = vote("bon", found.samples, scorer="judge")
        assert (outcome.answer, outcome.samples[3].abstain_reason) == ("b", "no_score")
        (exchange,) = judge.exchanges
        assert exchange.line == "POST /score HTTP/1.1"
        assert exchange.body == {"prompt": PROBLEM.text, "responses": ["a", "b", "c"]}
        assert exchange.headers["content-type"] == "application/json"
        assert exchange.headers["authorization"] == "Bearer secret"


async def test_connections_are_kept_for_the_next_vote() -> None:
    async with endpoint(scores(1, 2, 3)) as (judge, state):
        for _ in range(3):
            await scored("judge", PROBLEM, SAMPLES, state)
        assert (len(judge.exchanges), judge.connections) == (3, 1)
        assert "authorization" not in judge.exchanges[0].headers


async def test_a_single_sample_is_not_sent() -> None:
    async with endpoint(scores(1)) as (judge, state):
        found = await scored("judge", PROBLEM, SAMPLES[:1], state)
        assert found.samples == tuple(SAMPLES[:1]) and not judge.exchanges


async def test_scores_that_are_no_numbers_abstain_alone() -> None:
    async with endpoint(saying(b'{"scores": [NaN, 1e999, 1], "model": "any"}')) as (_, state):
        found = await scored("judge", PROBLEM, SAMPLES, state)
        outcome = vote("bon", found.samples, scorer="judge")
        assert (outcome.answer, found.flags) == ("c", ())
        assert [one.abstain_reason for one in outcome.samples] == ["no_score"] * 3 + [None]


# --- failures


async def slow(writer: Writer) -> None:
    await asyncio.sleep(4 * TIMEOUT_S)


async def dripping(writer: Writer) -> None:
    """Never silent for long, and never done."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    for _ in range(40):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(TIMEOUT_S / 10)


async def leaving(writer: Writer) -> None:
    writer.close()


async def leaving_early(writer: Writer) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"scores": [1')
    writer.close()


async def speaking_something_else(writer: Writer) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    writer.close()


FAILURES = {
    "slow": (slow, "no answer within 0.5 s"),
    "dripping": (dripping, "no answer within 0.5 s"),
    "leaves": (leaving, "disconnected"),
    "leaves early": (leaving_early, "closed"),
    "other protocol": (speaking_something_else, "Protocol"),
    "error": (saying(b'{"scores": [1, 2, 3]}', "500 Internal Server Error"), "status 500"),
    "busy": (saying(b"", "503 Service Unavailable"), "status 503"),
    "not found": (saying(b"{}", "404 Not Found"), "status 404"),
    "elsewhere": (saying(b"", "307 Temporary Redirect", "location: http://127.0.0.1:1/"), "status 307"),
    "nothing": (saying(b""), "JSON"),
    "no JSON": (saying(b"scores: 1"), "JSON"),
    "no UTF-8": (saying(b'{"scores": ["\xff"]}'), "JSON"),
    "no end of it": (saying(b"[" * 10**5), "recursion"),
    "a list": (saying(b"[1, 2, 3]"), "object"),
    "no scores": (saying(b'{"score": [1, 2, 3]}'), "scores: Field required"),
    "null": (saying(b'{"scores": null}'), "scores: "),
    "texts": (saying(b'{"scores": [1, "2", 3]}'), "scores.1: "),
    "truths": (saying(b'{"scores": [1, true, 3]}'), "scores.1: "),
    "too few": (scores(1, 2), "2 scores for 3 responses"),
    "too many": (scores(1, 2, 3, 4), "4 scores for 3 responses"),
    "wrong encoding": (saying(b"no gzip", "200 OK", "content-encoding: gzip"), "DecodingError"),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_whatever_fails_all_samples_abstain(failure: str, caplog: pytest.LogCaptureFixture) -> None:
    answer, reason = FAILURES[failure]
    async with endpoint(answer) as (judge, state):
        found = await scored("judge", PROBLEM, SAMPLES, state)
        assert len(judge.exchanges) == 1  # nothing is tried twice
    assert all(math.isnan(one.scores["judge"]) for one in found.samples) and found.flags == (FAILED,)
    (record,) = (record for record in caplog.records if record.name.startswith("server."))
    assert record.levelname == "WARNING" and "judge" in record.message and reason in record.message
    outcome = vote("bon", found.samples, scorer="judge")
    assert (outcome.answer, outcome.fallback) == (None, "all_abstain")
    assert outcome.baseline is not None and outcome.baseline.answer == "a"


async def test_nobody_is_there() -> None:
    async with endpoint(leaving) as (judge, _):
        pass
    state = fake_state(scorers={"judge": RewardEndpoint(judge.url, TIMEOUT_S)})
    found = await scored("judge", PROBLEM, SAMPLES, state)
    assert found.flags == (FAILED,)
    await state.close()


async def test_a_client_that_leaves_ends_the_call() -> None:
    async with endpoint(slow, timeout_s=30) as (judge, state):
        vote_ = asyncio.ensure_future(scored("judge", PROBLEM, SAMPLES, state))
        while not judge.exchanges:
            await asyncio.sleep(0.005)
        vote_.cancel()
        with pytest.raises(asyncio.CancelledError):
            await vote_


async def test_other_votes_go_on_while_one_waits() -> None:
    async with endpoint(slow) as (_, waiting), endpoint(scores(1, 2, 3)) as (_, quick):
        late = asyncio.ensure_future(scored("judge", PROBLEM, SAMPLES, waiting))
        assert (await scored("judge", PROBLEM, SAMPLES, quick)).flags == ()
        assert not late.done()
        assert (await late).flags == (FAILED,)


async def test_the_documented_endpoint_works() -> None:
    (example,) = Document("voting.md").blocks("python")
    port = free_port()
    assert "9000" in example
    process = subprocess.Popen([sys.executable, "-c", example.replace("9000", str(port))], stderr=subprocess.DEVNULL)
    state = fake_state(scorers={"judge": RewardEndpoint(f"http://127.0.0.1:{port}/", 5.0)})
    try:
        for _ in range(200):
            found = await scored("judge", PROBLEM, samples_of("aa", "b", "ccc"), state)
            if not found.flags:
                break
            await asyncio.sleep(0.05)
        assert [one.scores["judge"] for one in found.samples] == [-2, -1, -3]
    finally:
        await state.close()
        process.kill()
        process.wait()
