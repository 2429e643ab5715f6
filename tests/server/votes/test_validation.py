"""What people say about stored votes, through HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.state import Limits
from server.votes import store
from server.votes.store import VoteStore
from tests.server.conformance.helpers import refused
from tests.server.live import Live, fake_state, start
from tests.server.votes.stored import RECORDS, hold, post_verdict, post_vote, say, stored


def test_rejecting_the_winner_promotes_the_runner_up(raw: httpx.Client) -> None:
    vote = hold(raw)
    after = say(raw, vote, "reject", cluster_id=1)
    assert (after["answer"], after["confidence"], after["status"]) == ("8", 2 / 3, "open")
    assert after["representative"] == {"index": 0, "text": "a #### 8"}
    rows = after["voting"]["clusters"]
    assert [(row["weight"], row["rejected"]) for row in rows] == [(2, False), (0, True), (1, False)]
    assert (after["voting"]["answer"], after["voting"]["confidence"]) == ("8", 2 / 3)
    assert after["voting"]["baseline_sc"] == vote["voting"]["baseline_sc"]
    assert {name: after[name] for name in ("id", "created", "expires_at", "usage", "response")} == {
        name: vote[name] for name in ("id", "created", "expires_at", "usage", "response")
    }


def test_rejecting_all_leaves_no_answer(raw: httpx.Client) -> None:
    vote = hold(raw)
    for place in range(3):
        vote = say(raw, vote, "reject", cluster_id=place)
    assert (vote["answer"], vote["confidence"], vote["representative"], vote["status"]) == (None, None, None, "open")
    accepted = say(raw, vote, "accept", cluster_id=2)
    assert (accepted["answer"], accepted["confidence"], accepted["status"]) == ("9", 1, "accepted")


def test_accept_is_final(raw: httpx.Client) -> None:
    vote = say(raw, hold(raw), "accept", cluster_id=0)
    assert (vote["answer"], vote["status"]) == ("8", "accepted")
    for verdict, fields in (("accept", {}), ("reject", {}), ("correct", {"value": "3"})):
        error = refused(post_verdict(raw, vote, verdict, cluster_id=1, **fields), status=400, code="vote_closed")
        assert error["type"] == "invalid_request_error"
    assert stored(raw, vote) == vote


def test_correct_finds_what_says_the_same_or_makes_it(raw: httpx.Client) -> None:
    found = say(raw, hold(raw), "correct", cluster_id=1, value="18/2")
    assert (found["answer"], found["status"], found["representative"]["index"]) == ("18/2", "corrected", 4)
    assert len(found["voting"]["clusters"]) == 3
    made = say(raw, hold(raw), "correct", cluster_id=1, value="10")
    assert (made["answer"], made["representative"], made["confidence"]) == ("10", None, None)
    assert made["voting"]["clusters"][-1]["members"] == []


def test_the_log_says_when_and_who_but_not_with_which_key(raw: httpx.Client) -> None:
    before = time.time()
    vote = say(raw, hold(raw), "reject", cluster_id=2)
    vote = say(raw, vote, "reject", cluster_id=0, user="ann@example.org")
    vote = say(raw, vote, "correct", cluster_id=0, value="7", user="ann@example.org")
    times = [entry.pop("time_s") for entry in vote["log"]]
    assert before <= times[0] <= times[1] <= times[2] <= time.time()
    callers = [entry.pop("caller") for entry in vote["log"]]
    assert callers[0] == "anonymous" and callers[1] == callers[2] and "ann" not in callers[1]
    assert vote["log"] == [
        {"cluster_id": 2, "verdict": "reject"},
        {"cluster_id": 0, "verdict": "reject"},
        {"cluster_id": 0, "verdict": "correct", "value": "7"},
    ]


SAID = st.lists(
    st.tuples(st.sampled_from(["accept", "reject", "reject", "reject", "correct"]), st.integers(-1, 4)), max_size=6
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SAID)
def test_the_log_alone_leads_to_the_state(raw: httpx.Client, said: list[tuple[str, int]]) -> None:
    """Refused verdicts leave no trace; those of the log, said to a fresh vote, make the same of it."""
    vote = hold(raw)
    for verdict, place in said:
        value = {"value": "8.0"} if verdict == "correct" else {}
        response = post_verdict(raw, vote, verdict, cluster_id=place, **value)
        if response.status_code == 400:
            assert stored(raw, vote) == vote
        else:
            assert response.json()["log"][:-1] == vote["log"]
            vote = response.json()
    again = hold(raw)
    for entry in vote["log"]:
        again = say(raw, again, **{name: entry[name] for name in entry if name not in ("time_s", "caller")})
    assert _lasting(again) == _lasting(vote)


def _lasting(vote: dict[str, Any]) -> dict[str, Any]:
    """What does not change with the time and the id."""
    log = [{name: entry[name] for name in entry if name != "time_s"} for entry in vote["log"]]
    voting = {name: value for name, value in vote["voting"].items() if name != "id"}
    same = {name: vote[name] for name in ("status", "answer", "confidence", "representative", "usage")}
    return same | {"log": log, "voting": voting}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"cluster_id": 0}, "verdict"),
        ({"cluster_id": 0, "verdict": "maybe"}, "verdict"),
        ({"verdict": "accept"}, "cluster_id"),
        ({"verdict": "accept", "cluster_id": 0, "test_id": 0}, "cluster_id"),
        ({"verdict": "accept", "cluster_id": "0"}, "cluster_id"),
        ({"verdict": "accept", "cluster_id": True}, "cluster_id"),
        ({"verdict": "accept", "cluster_id": 3}, "cluster_id"),
        ({"verdict": "accept", "cluster_id": -1}, "cluster_id"),
        ({"verdict": "accept", "test_id": 0}, "test_id"),
        ({"verdict": "correct", "cluster_id": 0}, "value"),
        ({"verdict": "reject", "cluster_id": 0, "value": "3"}, "value"),
        ({"verdict": "correct", "cluster_id": 0, "value": 3}, "value"),
        ({"verdict": "correct", "cluster_id": 0, "value": "3", "passes": [True]}, "passes"),
        ({"verdict": "accept", "cluster_id": 0, "reason": "x"}, "reason"),
    ],
)
def test_verdicts_that_are_none(raw: httpx.Client, body: dict[str, Any], param: str) -> None:
    vote = hold(raw)
    refused(raw.post(f"/v1/votes/{vote['id']}/validate", json=body), param)
    assert stored(raw, vote) == vote


def test_unknown_votes(raw: httpx.Client) -> None:
    nobody = {"id": "vote_0"}
    refused(raw.get("/v1/votes/vote_0"), "id", 404, "vote_not_found")
    refused(post_verdict(raw, nobody, "accept", cluster_id=0), "id", 404, "vote_not_found")
    refused(raw.post("/v1/votes/vote_0/validate", content=b"{"), None, 400, "invalid_json")
    refused(raw.delete("/v1/votes/vote_0"), status=405)


def test_the_log_is_bounded(raw: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.votes.validation.MOST_VERDICTS", 2)
    vote = hold(raw)
    for _ in range(2):
        vote = say(raw, vote, "reject", cluster_id=0)
    refused(post_verdict(raw, vote, "reject", cluster_id=0), None, 400, "vote_log_full")
    assert store.MOST_VERDICTS > 100


# --- servers with other settings


@pytest.fixture
def other(request: pytest.FixtureRequest) -> Iterator[tuple[Live, httpx.Client]]:
    live = start(fake_state(**request.param))
    with httpx.Client(base_url=live.url, timeout=30) as raw:
        yield live, raw
    live.stop()


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


@pytest.mark.parametrize("other", [{"api_keys": ("key-one", "key-two")}], indirect=True)
def test_a_vote_belongs_to_the_key_that_held_it(other: tuple[Live, httpx.Client]) -> None:
    _, raw = other
    refused(post_vote(raw), status=401)
    raw.headers.update(key("key-one"))
    vote = say(raw, hold(raw), "reject", cluster_id=1)
    said = say(raw, vote, "reject", cluster_id=2, user="ann")
    callers = [entry["caller"] for entry in said["log"]]
    assert callers[0].startswith("key_") and "key-one" not in str(said) and callers[1].startswith("user_")
    raw.headers.update(key("key-two"))
    path = f"/v1/votes/{vote['id']}"
    refused(raw.get(path), "id", 404, "vote_not_found")
    refused(post_verdict(raw, vote, "accept", cluster_id=0), "id", 404, "vote_not_found")
    raw.headers.update(key("key-one"))
    assert stored(raw, vote) == said


@pytest.mark.parametrize("other", [{"votes": VoteStore(ttl_s=60, most=2)}], indirect=True)
def test_votes_go(other: tuple[Live, httpx.Client]) -> None:
    live, raw = other
    first, second = hold(raw), hold(raw)
    say(raw, second, "accept", cluster_id=0)
    third = hold(raw)
    refused(raw.get(f"/v1/votes/{second['id']}"), status=404)
    clock = live.state.votes.clock
    try:
        live.state.votes.clock = lambda: clock() + 61
        for vote in (first, third):
            refused(raw.get(f"/v1/votes/{vote['id']}"), status=404, code="vote_not_found")
    finally:
        live.state.votes.clock = clock


@pytest.mark.parametrize("other", [{"limits": Limits(body_bytes=4096)}], indirect=True)
def test_bodies_keys_and_draining_as_everywhere(other: tuple[Live, httpx.Client]) -> None:
    live, raw = other
    refused(post_vote(raw, samples_data=RECORDS * 40), status=413)
    vote = hold(raw, samples_data=RECORDS[:3])
    refused(post_verdict(raw, vote, "correct", cluster_id=0, value="x" * 5000), status=413)
    live.state.draining = True
    refused(raw.get(f"/v1/votes/{vote['id']}"), status=503)
    refused(post_vote(raw, samples_data=RECORDS[:3]), status=503)
    refused(post_verdict(raw, vote, "accept", cluster_id=0), status=503)


@pytest.mark.parametrize("other", [{}], indirect=True)
def test_metrics(other: tuple[Live, httpx.Client]) -> None:
    _, raw = other
    vote, _ = hold(raw), hold(raw, voting={"rule": "pc"})
    say(raw, vote, "reject", cluster_id=1)
    say(raw, vote, "accept", cluster_id=0)
    refused(post_verdict(raw, vote, "accept", cluster_id=0), status=400)
    text = raw.get("/metrics").text
    assert "drafthouse_votes_open 1.0" in text
    assert 'drafthouse_verdicts_total{target="cluster",verdict="reject"} 1.0' in text
    assert 'drafthouse_verdicts_total{target="cluster",verdict="accept"} 1.0' in text
    assert 'drafthouse_votes_total{rule="pc"} 1.0' in text
    route = 'drafthouse_http_requests_total{route="/v1/votes/{vote_id}/validate",status='
    assert f'{route}"200"}} 2.0' in text and f'{route}"400"}} 1.0' in text


@pytest.mark.parametrize("other", [{}], indirect=True)
def test_verdicts_at_the_same_time_are_applied_one_after_the_other(other: tuple[Live, httpx.Client]) -> None:
    """Each sees what the one before has made; none is lost."""
    _, raw = other
    vote = hold(raw)
    statuses: list[int] = []

    def reject(place: int) -> None:
        with httpx.Client(base_url=raw.base_url, timeout=30) as mine:
            for _ in range(8):
                statuses.append(post_verdict(mine, vote, "reject", cluster_id=place).status_code)

    threads = [threading.Thread(target=reject, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = stored(raw, vote)
    assert statuses == [200] * 24 and len(after["log"]) == 24 and after["answer"] is None


def test_the_document_has_the_routes(raw: httpx.Client) -> None:
    document = raw.get("/openapi.json").json()
    paths, schemas = document["paths"], document["components"]["schemas"]
    for path, method, statuses in (
        ("/v1/votes", "post", {"200", "400", "401", "404", "413", "503"}),
        ("/v1/votes/{vote_id}", "get", {"200", "401", "404", "503"}),
        ("/v1/votes/{vote_id}/validate", "post", {"200", "400", "401", "404", "413", "503"}),
    ):
        assert statuses <= set(paths[path][method]["responses"])
    forms = {one["$ref"].rpartition("/")[2] for one in schemas["VoteBody"]["anyOf"]}
    assert forms == {"ChatVoteBody", "CompletionVoteBody", "SamplesVoteBody"}
    assert {"samples_data", "voting", "code", "model"} <= set(schemas["SamplesVoteBody"]["properties"])
    assert schemas["VerdictBody"]["properties"]["verdict"]["enum"] == ["accept", "reject", "correct"]
