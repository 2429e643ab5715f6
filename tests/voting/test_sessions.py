"""Vote sessions: what verdicts do, and that the log alone leads to the state."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplers.contract import SamplerError
from tests.voting.votes import sample, samples_of
from voting.answers.clusters import partition
from voting.answers.equivalence import Equivalence, read_equivalence
from voting.contract import VOTING_RULES, Sample
from voting.outcome import hold
from voting.rule import read_values
from voting.sessions import VoteSession, finder
from voting.verdicts import UnknownTarget, Verdict, VoteClosed, read_verdict, replay

EXACT = Equivalence()


def session(samples: list[Sample], rule: str = "sc", equivalence: Equivalence = EXACT) -> VoteSession:
    method = VOTING_RULES.get(rule)
    clusters = partition(samples, equivalence).clusters
    outcome = hold(samples, clusters, method, read_values(method, {}, len(samples)))
    return VoteSession(outcome, finder(outcome, equivalence))


def say(verdict: str, cluster: int, value: str | None = None) -> Verdict:
    return Verdict("cluster", cluster, verdict, value, time_s=1.5, caller="ann")


SAMPLES = samples_of(("1/2", 0.5), ("7", 0.4), ("0.5", 0.3), ("7", 0.6), ("7", 0.2), ("x", 0.9))  # 2, 3 and 1 votes


def test_before_any_verdict_it_is_the_vote() -> None:
    start = session(SAMPLES)
    report, before = start.report(), start.outcome.report()
    for row in report["clusters"]:
        assert row.pop("rejected") is False
    assert report == before | {"status": "open", "log": []}


def test_rejecting_the_winner_promotes_the_runner_up() -> None:
    start = session(SAMPLES)
    assert (start.answer, start.confidence, start.representative) == ("7", 0.5, 3)
    after = start.after(say("reject", 1))
    assert (after.answer, after.confidence, after.representative) == ("1/2", 2 / 3, 0)
    assert [row["weight"] for row in after.report()["clusters"]] == [2, 0, 1]
    assert start.answer == "7" and start.log == ()  # a state is a value


def test_rejecting_another_leaves_the_winner() -> None:
    after = session(SAMPLES).after(say("reject", 0))
    assert (after.answer, after.confidence) == ("7", 0.75)


def test_rejecting_all_leaves_no_answer() -> None:
    after = replay(session(SAMPLES), [say("reject", place) for place in (2, 0, 1)])
    report = after.report()
    assert (after.answer, after.confidence, after.representative, report["tie"]) == (None, None, None, False)
    assert all(row["weight"] == 0 and row["share"] is None for row in report["clusters"])


@pytest.mark.parametrize("rule", ["sc", "pc", "rpc", "ppl"])
def test_every_kind_of_rule_has_a_runner_up(rule: str) -> None:
    start = session(SAMPLES, rule)
    seen = []
    while start.answer is not None:
        assert start.winner is not None
        seen.append(start.answer)
        start = start.after(say("reject", start.winner))
        json.dumps(start.report(), allow_nan=False)
    assert sorted(seen) == ["1/2", "7", "x"]


def test_a_tie_ends_with_the_rejection_of_what_was_tied() -> None:
    tied = session([sample(0, "a", 0.5), sample(1, "b", 0.4), sample(2, "c", 0.3)])
    assert tied.tie and tied.after(say("reject", 2)).tie
    assert not replay(tied, [say("reject", 2), say("reject", 1)]).tie
    assert not tied.after(say("accept", 1)).tie


def test_accept_is_final() -> None:
    after = session(SAMPLES).after(say("accept", 0))
    assert (after.answer, after.status, after.report()["answer"]) == ("1/2", "accepted", "1/2")
    for verdict in (say("reject", 0), say("accept", 1), say("correct", 0, "3"), say("accept", 99)):
        with pytest.raises(VoteClosed):
            after.after(verdict)


def test_a_rejected_cluster_may_be_accepted() -> None:
    after = replay(session(SAMPLES), [say("reject", 1), say("accept", 1)])
    assert (after.answer, after.confidence) == ("7", 0.5)


def test_correct_merges_with_what_says_the_same() -> None:
    after = session(SAMPLES).after(say("correct", 1, "2/4"))
    assert (after.answer, after.winner, after.status) == ("2/4", 0, "corrected")
    assert len(after.report()["clusters"]) == 3
    assert after.representative == 0
    again = replay(session(SAMPLES), [say("reject", 0), say("correct", 1, "2/4")])  # rejected before, right after all
    assert (again.winner, again.confidence) == (0, 1 / 3)
    string = session(SAMPLES, equivalence=read_equivalence("string"))  # where 1/2 and 0.5 are two
    assert string.after(say("correct", 0, "2/4")).winner is None
    assert string.after(say("correct", 0, " 0.5 ")).winner == 2


def test_correct_creates_what_nobody_said() -> None:
    after = session(SAMPLES).after(say("correct", 1, "8"))
    assert (after.answer, after.winner, after.confidence, after.representative) == ("8", None, None, None)
    created = after.report()["clusters"][-1]
    assert (created["id"], created["answer"], created["members"]) == (3, "8", [])
    with pytest.raises(VoteClosed):
        after.after(say("accept", 0))


def test_options_are_found_whatever_their_case() -> None:
    start = session([replace(one, option=True) for one in samples_of(("A", 0.5), ("B", 0.5), ("B", 0.4))])
    assert start.after(say("correct", 1, "(a)")).winner == 0


def test_a_vote_without_answers() -> None:
    start = session([sample(0, None), sample(1, None)])
    assert start.answer is None
    with pytest.raises(UnknownTarget):
        start.after(say("accept", 0))
    assert start.report()["status"] == "open"


@pytest.mark.parametrize("verdict", [say("accept", 3), say("reject", -1), replace(say("accept", 0), target="test")])
def test_unknown_targets(verdict: Verdict) -> None:
    with pytest.raises(UnknownTarget):
        session(SAMPLES).after(verdict)


@given(st.lists(st.tuples(st.sampled_from(["reject", "reject", "accept", "correct"]), st.integers(-1, 4)), max_size=8))
def test_the_log_leads_to_the_state(verdicts: list[tuple[str, int]]) -> None:
    start = session(SAMPLES)
    state = start
    for verdict, place in verdicts:
        before = state
        try:
            state = state.after(say(verdict, place, "9" if verdict == "correct" else None))
        except SamplerError:
            assert state == before  # refused verdicts leave no trace
        else:
            assert state.log[:-1] == before.log  # which is only ever added to
    assert replay(start, state.log) == state
    assert replay(start, state.log).report() == state.report()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"verdict": "accept"}, "cluster_id"),
        ({"verdict": "accept", "cluster_id": 0, "test_id": 0}, "cluster_id"),
        ({"verdict": "accept", "cluster_id": "0"}, "cluster_id"),
        ({"verdict": "accept", "test_id": True}, "test_id"),
        ({"cluster_id": 0}, "verdict"),
        ({"cluster_id": 0, "verdict": "maybe"}, "verdict"),
        ({"cluster_id": 0, "verdict": ["accept"]}, "verdict"),
        ({"cluster_id": 0, "verdict": "correct"}, "value"),
        ({"cluster_id": 0, "verdict": "correct", "value": 3}, "value"),
        ({"cluster_id": 0, "verdict": "reject", "value": "3"}, "value"),
        ({"cluster_id": 0, "verdict": "reject", "reason": "3"}, "reason"),
        ({"test_id": 0, "verdict": "accept", "passes": [True]}, "passes"),
        ({"cluster_id": 0, "verdict": "correct", "value": "x", "passes": [True]}, "passes"),
        ({"test_id": 0, "verdict": "correct", "value": "x", "passes": [1]}, "passes"),
        ({"test_id": 0, "verdict": "correct", "value": "x", "passes": {}}, "passes"),
    ],
)
def test_bodies_that_are_no_verdict(body: dict[str, Any], param: str) -> None:
    with pytest.raises(SamplerError) as caught:
        read_verdict(body, 0.0, "ann")
    assert caught.value.param == param


def test_a_verdict_is_read_and_reported() -> None:
    found = read_verdict({"test_id": 2, "verdict": "correct", "value": "[1]"}, 3.5, "ann")
    assert found == Verdict("test", 2, "correct", "[1]", 3.5, "ann")
    assert found.report() == {"test_id": 2, "verdict": "correct", "value": "[1]", "time_s": 3.5, "caller": "ann"}
    column = read_verdict({"test_id": 2, "verdict": "correct", "value": "[1]", "passes": [True, False]}, 3.5, "ann")
    assert column == replace(found, column=(True, False))
    assert column.report()["passes"] == [True, False]
