"""What a stored vote weighs: everything that a request can make it keep."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest

from server.votes.executor import CodeTest
from server.votes.request import read_vote
from server.votes.result import Held, decide
from server.votes.store import StoredVote
from tests.server.conformance.helpers import post_chat
from tests.server.conformance.scripted import say
from tests.server.live import Live
from tests.voting.votes import samples_of
from voting.answers.equivalence import Equivalence
from voting.contract import Sample
from voting.poll import Reading
from voting.records import read_sample
from voting.sessions import VoteSession, finder

FIRST, SECOND = samples_of(("7", 0.5), ("8", 0.4))
LONG = "x" * 10_000


def size_with(changed: Sample, tests: tuple[CodeTest, ...] = ()) -> int:
    asked, reading = read_vote({}, 16), Reading(Equivalence())
    result = decide(asked, [changed, SECOND], reading, asked.stop.watch(), ())
    session = VoteSession(result.outcome, finder(result.outcome, reading.equivalence))
    held = Held(asked, result, reading, {"prompt": 0})
    return StoredVote("a", "", 0.0, 1.0, "m", held, session, {}, None, tests).size


@pytest.mark.parametrize(
    "changed",
    [
        replace(FIRST, text=LONG),
        replace(FIRST, answer=LONG),
        replace(FIRST, finish_reason=LONG),
        replace(FIRST, abstain_reason=LONG),
        replace(FIRST, scores={LONG: 1.0}),
        replace(FIRST, scores={str(number): 1.0 for number in range(1000)}),
        replace(FIRST, token_ids=tuple(range(1000))),
        replace(FIRST, entropies=(0.5,) * 1000),
        replace(FIRST, confidences=(0.5,) * 1000),
    ],
)
def test_every_field_of_a_sample_weighs(changed: Sample) -> None:
    assert size_with(changed) >= size_with(FIRST) + 10_000


def test_tests_and_their_results_weigh() -> None:
    tests = (CodeTest("", ""),) * 256
    assert size_with(FIRST, tests) >= size_with(FIRST) + 2 * 256 * 8
    assert size_with(FIRST, (CodeTest(LONG, LONG),)) >= size_with(FIRST) + 20_000


@pytest.mark.parametrize("field", ["index", "n_tokens"])
def test_integers_of_samples_are_of_a_machine(field: str) -> None:
    assert getattr(read_sample({"text": "", field: 2**63 - 1}, 0, "s"), field) == 2**63 - 1
    for value in (2**63, 10**4000, -1):
        with pytest.raises(ValueError, match=rf"'s\.{field}' must be an integer .* 63 bits"):
            read_sample({"text": "", field: value}, 0, "s")


# --- the event loop stays free


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("return_samples", [False, True])
def test_long_reports_are_made_beside_the_loop(
    raw: httpx.Client, live: Live, monkeypatch: pytest.MonkeyPatch, stream: bool, return_samples: bool
) -> None:
    on_loop: list[bool] = []

    def report(held: Held) -> dict[str, Any]:
        on_loop.append(asyncio._get_running_loop() is not None)
        return written(held)

    written = Held.report
    monkeypatch.setattr(Held, "report", report)
    say(live, ["x " * 60 + f"#### {index}" for index in range(200)])
    voting = {"samples": 200, "return_samples": return_samples}
    said = post_chat(raw, voting=voting, max_tokens=300, stream=stream)
    assert said.status_code == 200 and ("sample_records" in said.text) is return_samples
    assert on_loop == [not return_samples]
