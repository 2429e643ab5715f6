"""`voting.stop`: rules fire where they would over the recorded samples, and nothing goes on behind that."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.conformance.answers import body, text_of, wait_released
from tests.server.conformance.helpers import data_lines, post_chat, post_completion
from tests.server.conformance.scripted import answers, length, say
from tests.server.conformance.test_voting import progress, records, report
from tests.server.live import Live, fake_state, start
from voting.stopping.watch import read_stop

STOPS: list[Any] = [
    "beta",
    {"rule": "beta", "threshold": 0.8},
    {"rule": "beta", "every": 4},
    "esc",
    {"rule": "esc", "window": 3},
    {"rule": "esc", "window": 2, "answer_from": "window"},
    "mode_cert",
    {"rule": "mode_cert", "alpha": 0.2, "warmup": 1},
    {"rule": "mode_cert", "alpha": 0.2, "max_targets": 3},
    {"rule": "mode_cert", "report_only": True},
]
EVERY_STOP = pytest.mark.parametrize("stop", STOPS, ids=str)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Live]:
    live = start(fake_state())
    yield live
    live.stop()


@pytest.fixture(autouse=True)
def nothing_is_left(raw: httpx.Client, live: Live) -> Iterator[None]:
    yield
    wait_released(raw)
    assert not live.runner.live


@EVERY_STOP
@pytest.mark.parametrize("seed", range(4))
def test_a_rule_fires_where_it_does_over_the_recorded_samples(
    raw: httpx.Client, live: Live, stop: Any, seed: int
) -> None:
    draw = random.Random(seed)
    given = [draw.choices((4, 5, 6, None), (8, 2, 1, 1))[0] for _ in range(40)]
    texts = ["x y " * draw.randrange(9) + one for one in answers(*given)]
    say(live, texts)
    before = live.runner.generated
    vote = body(post_chat(raw, voting={"stop": stop, "return_samples": True}, max_tokens=60))
    said = report(vote)
    watch = read_stop(stop).over((answer, 1.0) for answer in given)
    used = watch.seen if watch.fired else 40
    assert said["stop"]["fired_at"] == (used if watch.fired else None)
    assert said["stop"]["value"] == watch.report()["value"] and said["used_samples"] == used
    counted = [given[place] for place in watch.basis]
    answer = max({*counted} - {None}, key=counted.count)
    assert said["answer"] == str(answer)
    ties = [one for one in {*counted} - {None} if counted.count(one) == counted.count(answer)]
    assert len(ties) == 1, "the test has no say in ties"
    assert [one["index"] for one in records(vote)] == list(range(used))
    # every step draws a token of each sample that has not ended; the vote ends when the last of the prefix does
    sizes = [length(live, text) for text in texts]
    steps = max(sizes[:used])
    drawn = [min(size, steps) for size in sizes]
    assert said["tokens"]["completion"] == sum(drawn) == vote["usage"]["completion_tokens"]
    assert said["tokens"]["discarded"] == sum(drawn[used:])
    assert live.runner.generated - before <= sum(min(size, steps + 1) for size in sizes)


def test_samples_are_looked_at_in_their_order(raw: httpx.Client, live: Live) -> None:
    """The first one ends last; those that agree before it do not decide."""
    say(live, ["y " * 15 + "#### 5", *answers(*[4] * 9)])
    said = report(body(post_chat(raw, max_tokens=60, voting={"samples": 10, "stop": {"rule": "esc", "window": 4}})))
    assert said["stop"]["fired_at"] == 8 and said["used_samples"] == 8
    assert [cluster["members"] for cluster in said["clusters"]] == [[0], list(range(1, 8))]


def test_what_goes_on_is_ended(raw: httpx.Client, live: Live) -> None:
    say(live, [*answers(4, 4, 4, 4), *["z " * 150] * 36])
    before = live.runner.generated
    vote = body(post_completion(raw, voting={"stop": "beta"}, max_tokens=400))
    short = length(live, answers(4)[0])
    assert report(vote)["stop"]["fired_at"] == 4
    assert live.runner.generated - before <= 40 * (short + 2)
    assert vote["usage"]["completion_tokens"] <= 40 * (short + 1)
    assert text_of(vote["choices"][0]) == answers(4)[0]


@EVERY_STOP
def test_a_stream_ends_likewise(raw: httpx.Client, live: Live, stop: Any) -> None:
    say(live, answers(*([5, 4, 4, 4, 5] + [4] * 35)))
    voting = {"stop": stop, "rule": "pc"}
    answer = body(post_chat(raw, voting=voting))
    events = data_lines(post_chat(raw, voting=voting, stream=True))
    assert report(events[-1]) == report(answer)
    finished = [one for one, _ in progress(events)]
    assert finished == list(range(1, len(finished) + 1)) and len(finished) >= report(answer)["used_samples"]


def test_a_certificate_is_reported_with_every_vote(raw: httpx.Client, live: Live) -> None:
    given = [4, 4, 5, 4, 4, None, 4, 4, 4, 4, 4, 4]
    say(live, answers(*given))
    for stop in (None, "none", {"rule": "esc", "window": 20}, {"rule": "beta", "threshold": 0.999999}):
        said = report(body(post_chat(raw, voting={"stop": stop, "samples": 12})))
        expected = read_stop("mode_cert").over((one, 1.0) for one in given).report()["cert"]
        assert said["cert"] == {**expected, "target": 0} and said["clusters"][0]["answer"] == "4"
    assert said["cert"]["certified"]


def test_a_window_answers_alone(raw: httpx.Client, live: Live) -> None:
    say(live, answers(5, 5, 4, 5, 4, 5, 4, 4))
    stop = {"rule": "esc", "window": 2}
    both = report(body(post_chat(raw, voting={"samples": 8, "stop": stop})))
    assert (both["answer"], both["stop"]["fired_at"]) == ("5", 2)
    say(live, answers(5, 4, 4, 5, 5, 6, 4, 4))
    every = report(body(post_chat(raw, voting={"samples": 8, "stop": stop})))
    asked = {"samples": 8, "stop": {**stop, "answer_from": "window"}, "return_samples": True}
    window = report(body(post_chat(raw, voting=asked)))
    assert every["stop"]["fired_at"] == window["stop"]["fired_at"] == 8
    assert every["used_samples"] == window["used_samples"] == 8
    assert [(one["index"], one["cluster"]) for one in window["sample_records"]] == [(i, None) for i in range(6)] + [
        (6, 0), (7, 0),
    ]  # fmt: skip
    assert (every["answer"], every["confidence"]) == ("4", 4 / 8)
    assert (window["answer"], window["confidence"]) == ("4", 1.0)
    assert every["clusters"][every["cert"]["target"]]["answer"] == "4"
    assert window["clusters"][window["cert"]["target"]]["answer"] == "4"  # 4 led after the warm-up, before the window


def test_a_target_whose_first_sample_has_no_vote(raw: httpx.Client, live: Live) -> None:
    say(live, ["#### 4", *["#### 4\nConfidence: 70"] * 9])
    said = report(body(post_chat(raw, voting={"rule": "verbalised", "samples": 10}, max_tokens=20)))
    assert said["clusters"][0]["members"] == list(range(1, 10)) and said["cert"]["target"] == 0


def test_a_stop_never_exceeds_the_samples(raw: httpx.Client, live: Live) -> None:
    say(live, answers(*range(40)))
    for samples in (1, 2, 7, 40):
        for stop in STOPS:
            said = report(body(post_chat(raw, voting={"samples": samples, "stop": stop}, max_tokens=12)))
            assert said["used_samples"] == samples and said["stop"]["fired_at"] is None


def test_stopping_agrees_with_the_judge(raw: httpx.Client, live: Live) -> None:
    """A judge is shown the samples that the answer is taken from."""
    stop = {"rule": "esc", "window": 2, "answer_from": "window"}
    say(live, answers(5, 6, 4, 4, 1, 1), judge="The most consistent response is Response 1.")
    said = report(
        body(post_chat(raw, voting={"rule": "usc", "samples": 6, "stop": stop, "params": {"shuffle": False}}))
    )
    assert said["stop"]["fired_at"] == 4
    assert (said["answer"], said["fallback"]) == ("4", None)


# --- what is left over


def test_samples_that_one_prompt_leaves_over_go_to_another(raw: httpx.Client, live: Live) -> None:
    mixed = answers(*[4, 5, 6, 7, 8, 9] * 5)
    say(live, mixed, easy=answers(*[4] * 30))
    voting = {"samples": 10, "stop": "esc", "reallocate": True, "return_samples": True}
    fields = {"prompt": ["easy one", "hard one"], "max_tokens": 10}
    answer = body(post_completion(raw, voting=voting, **fields))
    easy, hard = answer["drafthouse"]["voting"]
    assert easy["used_samples"] == 5 and easy["budget"] == {"granted": 0, "saved": 5, "unspent": 0}
    assert hard["used_samples"] == 15 and hard["budget"] == {"granted": 5, "saved": 5, "unspent": 0}
    assert [one["text"] for one in hard["sample_records"]] == mixed[:15]
    events = data_lines(post_completion(raw, voting=voting, stream=True, **fields))
    assert events[-1]["drafthouse"]["voting"] == answer["drafthouse"]["voting"]
    assert progress(events, 1)[-1] == (15, 15) and [one for one, _ in progress(events, 1)] == list(range(1, 16))
    alone = body(post_completion(raw, voting=voting, prompt="easy one"))
    assert report(alone)["budget"] == {"granted": 0, "saved": 5, "unspent": 5}
    plain = body(post_completion(raw, voting=voting | {"reallocate": False}, **fields))["drafthouse"]["voting"]
    assert plain[1]["used_samples"] == 10 and "budget" not in plain[1]


def test_a_share_may_decide(raw: httpx.Client, live: Live) -> None:
    """The rule goes on looking where it was."""
    say(live, answers(*[1, 2, 3, 4, 5, 6, 7, 8], *[4] * 9), easy=answers(*[4] * 20))
    voting = {"samples": 8, "stop": {"rule": "esc", "window": 4}, "reallocate": True}
    fields = {"prompt": ["easy 1", "easy 2", "hard"], "max_tokens": 10}
    *_, hard = body(post_completion(raw, voting=voting, **fields))["drafthouse"]["voting"]
    assert hard["budget"]["granted"] == 8
    assert hard["stop"]["fired_at"] == 12 and hard["used_samples"] == 12


# --- what fails


def test_a_sample_that_fails_abstains(raw: httpx.Client, live: Live) -> None:
    say(live, answers(4, 4, 5, 4))
    live.runner.behaviour.errors = {1: (2, "internal_error")}
    for fields in ({}, {"stop": {"rule": "esc", "window": 4}}):
        vote = body(post_chat(raw, voting={"samples": 4, "return_samples": True, **fields}))
        assert records(vote)[1]["abstain_reason"] == "failed"
        assert report(vote)["answer"] == "4" and report(vote)["stop"]["fired_at"] is None
        assert "failure" not in vote["choices"][0]
    live.runner.behaviour.errors = {i: (2, "constraint_unsatisfiable") for i in range(4)}
    assert post_chat(raw, voting={"samples": 4}).json()["error"]["code"] == "constraint_unsatisfiable"
    assert post_chat(raw, voting={"samples": 4}, stream=True).status_code in (200, 400)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_runner_that_fails(raw: httpx.Client, live: Live, streamed: bool) -> None:
    for error, status in ((RuntimeError("injected"), 500), (MemoryError(), 500)):
        live.runner.behaviour.raise_after = (3, error)
        response = post_chat(raw, voting={"samples": 4}, stream=streamed)
        if streamed:
            assert '"error"' in response.text
        else:
            assert response.status_code == status
    live.runner.reset()
    assert body(post_chat(raw, voting={"samples": 4}))["drafthouse"]["voting"]["used_samples"] == 4


# --- counted


def test_metrics(raw: httpx.Client, live: Live) -> None:
    def counted() -> dict[str, float]:
        lines = [
            line.split(" ") for line in raw.get("/metrics").text.splitlines() if line.startswith("drafthouse_vote")
        ]
        return {name: float(value) for name, value in lines if "_created" not in name}

    say(live, answers(*[4] * 40))
    before = counted()
    body(post_chat(raw, voting={"stop": "beta", "rule": "complexity"}))
    body(post_chat(raw, voting={"rule": "complexity", "samples": 3}))
    after = counted()
    grown = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
    assert grown == {
        'drafthouse_votes_total{rule="complexity"}': 2,
        'drafthouse_vote_samples_total{fate="used",rule="complexity"}': 7,
        'drafthouse_vote_samples_total{fate="discarded",rule="complexity"}': 36,
    }
