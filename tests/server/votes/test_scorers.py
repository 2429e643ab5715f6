"""The field `scorer`: who it may name, scorers of other packages, and what the operator configures."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from engine.runners.base import Capability
from server.config import ConfigError, load_config
from server.errors import ApiError
from server.launch import reward_endpoints
from server.state import ServerState
from server.votes.problem import Problem
from server.votes.scoring import check_scorer, scored
from server.votes.scoring.scored import FAILED
from tests.server.live import fake_state
from tests.voting.votes import sample, vote
from voting.scorers import SCORERS, Scorer

PATH = "voting.params.scorer"
PROBLEM = Problem("How many?")
SAMPLES = [sample(i, text[0], text=text, scores={}) for i, text in enumerate(["aa", "b", "aa", "ccc"])]


class Length:
    """Higher for longer texts. Remembers what it was asked, and in which thread."""

    name: ClassVar[str] = "length"

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self.threads: list[int] = []

    def score(self, prompt: str, responses: Sequence[str]) -> Sequence[float]:
        self.asked.append((prompt, list(responses)))
        self.threads.append(threading.get_ident())
        return [len(response) for response in responses]


@contextmanager
def registered(scorer: Scorer) -> Iterator[ServerState]:
    SCORERS.register(scorer)
    try:
        yield fake_state()
    finally:
        del SCORERS._items[scorer.name]


def refused(spec: Any, state: ServerState) -> ApiError:
    with pytest.raises(ApiError) as caught:
        check_scorer(spec, state, PATH)
    assert caught.value.status == 400
    return caught.value


def model(name: str) -> dict[str, str]:
    return {"model": name, "condition": "none", "unit": "token"}


# --- who may be named


async def test_what_this_server_has_is_accepted() -> None:
    with registered(Length()) as state:
        state.scorers = reward_endpoints(load_config({"scorers": ["judge=http://127.0.0.1:1/"]}, {}).scorers)
        for spec in ("likelihood", "judge", "length", model("acme/hash-b"), model("drafthouse-tiny")):
            check_scorer(spec, state, PATH)
        error = refused("reward", state)
        assert error.param == PATH and "unknown scorer 'reward'; known: likelihood, judge, length" in error.message
        await state.close()


def test_models_that_cannot_score() -> None:
    state = fake_state()
    for name in ("gpt-4", "drafthouse-tiny@greedy", ""):
        error = refused(model(name), state)
        assert error.param == f"{PATH}.model" and "served: drafthouse-tiny, acme/hash-b" in error.message
    state.models[1].runner.capabilities = frozenset({Capability.LOGIT_ROWS})  # type: ignore[misc]
    error = refused(model("acme/hash-b"), state)
    assert (error.param, error.code) == (f"{PATH}.model", "unsupported_by_runner")


def test_addresses_are_no_scorers() -> None:
    """Nobody but the operator says whom the server calls."""
    state = fake_state()
    for spec in ("http://169.254.169.254/latest", "https://example.org", "127.0.0.1:80"):
        assert refused(spec, state).param == PATH


# --- the sample's own likelihood


async def test_the_likelihood_needs_nobody() -> None:
    state = fake_state()
    samples = [sample(i, "ab"[i], q, scores={}) for i, q in enumerate((0.4, 0.7))]
    found = await scored("likelihood", PROBLEM, samples, state)
    assert [one.scores["likelihood"] for one in found.samples] == [math.log(0.4), math.log(0.7)]
    assert vote("bon", found.samples, scorer="likelihood").answer == "b"
    assert all(not served.runner.requests for served in state.models)  # type: ignore[attr-defined]
    single = await scored("likelihood", PROBLEM, samples[:1], state)
    assert single.samples == tuple(samples[:1])


# --- scorers of other packages


async def test_an_installed_scorer_is_asked_once_outside_of_the_event_loop() -> None:
    length = Length()
    with registered(length) as state:
        found = await scored("length", PROBLEM, SAMPLES, state)
        assert length.asked == [("How many?", ["aa", "b", "ccc"])]
        assert length.threads != [threading.get_ident()]
        assert [one.scores["length"] for one in found.samples] == [2, 1, 2, 3] and found.flags == ()
        assert vote("bon", found.samples, scorer="length").answer == "c"
        await scored("length", PROBLEM, SAMPLES[:1], state)
        assert len(length.asked) == 1


class Failing(Length):
    name: ClassVar[str] = "failing"

    def __init__(self, outcome: Any) -> None:
        super().__init__()
        self.outcome = outcome

    def score(self, prompt: str, responses: Sequence[str]) -> Sequence[float]:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize(
    "outcome",
    [
        ValueError("out of order"), MemoryError(), SystemExit(3), StopIteration(), KeyboardInterrupt(),
        asyncio.CancelledError(), [1.0], [1.0] * 4, ["x", 1, 2], [None, 1, 2], None, 7, [10**400, 1, 2],
    ],
    ids=repr,
)  # fmt: skip
async def test_whatever_it_does_the_samples_abstain(outcome: Any, caplog: pytest.LogCaptureFixture) -> None:
    with registered(Failing(outcome)) as state:
        found = await scored("failing", PROBLEM, SAMPLES, state)
    assert all(math.isnan(one.scores["failing"]) for one in found.samples) and found.flags == (FAILED,)
    (record,) = (record for record in caplog.records if record.name.startswith("server."))
    assert "scorer failing: " in record.message
    assert vote("bon", found.samples, scorer="failing").fallback == "all_abstain"


async def test_one_that_does_not_end_holds_up_nobody_else() -> None:
    entered, leave = threading.Event(), threading.Event()

    class Endless(Length):
        name: ClassVar[str] = "endless"

        def score(self, prompt: str, responses: Sequence[str]) -> Sequence[float]:
            entered.set()
            leave.wait(30)
            return super().score(prompt, responses)

    endless = Endless()
    with registered(endless) as state, registered(Length()):
        waiting = [asyncio.ensure_future(scored("endless", PROBLEM, SAMPLES, state)) for _ in range(40)]
        await asyncio.to_thread(entered.wait, 5)
        found = await asyncio.wait_for(scored("length", PROBLEM, SAMPLES, state), 5)
        assert found.flags == () and await asyncio.wait_for(asyncio.to_thread(lambda: 1), 5) == 1
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        leave.set()
        assert all(one.flags == () for one in await asyncio.gather(*waiting[1:]))


# --- configuration


def endpoints(**given: Any) -> dict[str, Any]:
    return {name: (str(one.url), one.timeout_s) for name, one in load_config(**given).scorers.items()}


def test_flags_variables_and_files_name_endpoints(tmp_path: Path) -> None:
    none: dict[str, Any] = {"flags": {}, "environment": {}}
    flags = ["judge=http://localhost:9000/score?a=b,c", "safe=https://example.org"]
    expected = {"judge": ("http://localhost:9000/score?a=b,c", 30.0), "safe": ("https://example.org/", 30.0)}
    assert endpoints(flags={"scorers": flags}, environment={}) == expected
    variable = {"DRAFTHOUSE_SCORERS": "judge=http://localhost:9000/score, safe=https://example.org"}
    assert endpoints(flags={}, environment=variable)["safe"] == expected["safe"]
    file = tmp_path / "config.yaml"
    file.write_text("scorers: {judge: {url: 'http://localhost:1', timeout_s: 2}}")
    assert endpoints(**none, file=file) == {"judge": ("http://localhost:1/", 2.0)}
    assert endpoints(flags={"scorers": flags}, environment=variable, file=file) == expected
    assert endpoints(**none) == {}


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        (["judge"], "'scorers' .*'judge' must be NAME=URL"),
        (["a=http://x", "a=http://y"], "'a' is given twice"),
        (["a=ftp://x"], r"'scorers\.a\.url' .*http"),
        (["a=localhost:9000"], r"'scorers\.a\.url'"),
        (["a b=http://x"], r"'scorers\.a b"),
        (["=http://x"], "'scorers"),
        ({"a": {}}, r"'scorers\.a\.url' .*required"),
        ({"a": {"url": "http://x", "colour": 1}}, r"'scorers\.a\.colour'"),
        ({"a": {"url": "http://x", "timeout_s": 0}}, r"'scorers\.a\.timeout_s'"),
        ({"a": {"url": "http://x", "timeout_s": math.inf}}, r"'scorers\.a\.timeout_s'"),
        ({"a": "http://x"}, r"'scorers\.a'"),
        (7, "'scorers'"),
    ],
)
def test_settings_that_name_none(setting: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config({"scorers": setting}, {})


def test_names_that_are_taken() -> None:
    with registered(Length()):
        for name in ("likelihood", "length"):
            with pytest.raises(ConfigError, match=f"there is a scorer '{name}' already"):
                reward_endpoints(load_config({"scorers": [f"{name}=http://x"]}, {}).scorers)


async def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_config({"scorers": {"judge": {"url": "http://x", "api_key_env": "JUDGE_KEY"}}}, {}).scorers
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"'scorers\.judge\.api_key_env': the variable JUDGE_KEY is not set"):
        reward_endpoints(settings)
    monkeypatch.setenv("JUDGE_KEY", "secret")
    state = fake_state(scorers=reward_endpoints(settings))
    await state.close()
    with pytest.raises(RuntimeError, match="closed"):  # nothing is left open
        await state.scorers["judge"].scores(PROBLEM, ["a"])
