"""Votes that are stored, over samples that are drawn: what a request with `voting` answers, and verdicts on it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.conformance.helpers import MESSAGES, MODEL, PROMPT, post_chat, post_completion, refused
from tests.server.live import Live
from tests.server.votes.stored import hold, post_vote, say

VOTING = {"rule": "pc", "samples": 6, "extract": "whole", "on_truncated": "keep", "return_samples": True}
CHAT: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 12, "seed": 7}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 12, "seed": 7}


def steady(response: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from request to request."""
    fields = {name: value for name, value in response.items() if name not in ("id", "created", "usage")}
    drafthouse = dict(fields["drafthouse"])
    drafthouse["voting"] = {name: value for name, value in drafthouse["voting"].items() if name != "id"}
    return fields | {"drafthouse": drafthouse}


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_it_is_the_vote_of_the_same_request(raw: httpx.Client, kind: str) -> None:
    body, post = (CHAT, post_chat) if kind == "chat" else (TEXT, post_completion)
    fields = {**body, "voting": VOTING, "spec_decode": False}  # drafts come as time has it
    plain = post(raw, **fields).json()
    vote = hold(raw, **fields)
    assert steady(vote["response"]) == steady(plain)
    report = vote["response"]["drafthouse"]["voting"]
    assert report["id"] == vote["id"] == vote["voting"]["id"]
    assert vote["usage"] == vote["response"]["usage"]
    assert vote["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"]
    for row in vote["voting"]["clusters"]:
        assert row.pop("rejected") is False
    assert vote["voting"] == report
    assert (vote["model"], vote["status"], vote["log"]) == (MODEL, "open", [])
    assert (vote["answer"], vote["confidence"]) == (report["answer"], report["confidence"])
    choice = plain["choices"][0]
    assert vote["representative"]["text"] == (choice["message"]["content"] if kind == "chat" else choice["text"])


def test_the_samples_given_back_are_the_same_vote(raw: httpx.Client) -> None:
    drawn = hold(raw, **TEXT, voting=VOTING)
    records = drawn["voting"]["sample_records"]
    given = hold(raw, samples_data=records, voting=VOTING | {"extract": None})
    for name in ("answer", "confidence", "representative"):
        assert given[name] == drawn[name]
    same = ("clusters", "k_distinct", "dedupe_key", "baseline_sc", "abstain_rate", "tie", "sample_records", "cert")
    assert {name: given["voting"][name] for name in same} == {name: drawn["voting"][name] for name in same}


def test_verdicts_change_the_answer_and_not_what_was_generated(raw: httpx.Client) -> None:
    vote = hold(raw, **TEXT, voting=VOTING | {"rule": "sc"})
    texts = {record["index"]: record["text"] for record in vote["voting"]["sample_records"]}
    seen = []
    now = vote
    while now["answer"] is not None:
        seen.append(now["answer"])
        shown = now["representative"]
        assert shown["text"] == texts[shown["index"]]
        leading = next(row for row in now["voting"]["clusters"] if row["answer"] == now["answer"])
        assert shown["index"] in leading["members"]
        now = say(raw, now, "reject", cluster_id=leading["id"])
        assert now["response"] == vote["response"]
    assert sorted(seen) == sorted(row["answer"] for row in vote["voting"]["clusters"])
    assert now["representative"] is None


@pytest.mark.parametrize("voting", [{}, None, ...])
def test_voting_may_be_left_out(raw: httpx.Client, voting: Any) -> None:
    vote = hold(raw, **TEXT, **({} if voting is ... else {"voting": voting}))
    assert (vote["voting"]["rule"], vote["voting"]["samples"]) == ("sc", 16)
    assert hold(raw, **TEXT, vllm_xargs={"voting": '{"samples": 3}'})["voting"]["samples"] == 3


def test_a_preset_may_say_how_to_vote(raw: httpx.Client, live: Live) -> None:
    model = live.state.models[0]
    before, model.presets = model.presets, {**model.presets, "sure": {"voting": {"rule": "pc", "samples": 3}}}
    try:
        vote = hold(raw, **TEXT | {"model": f"{MODEL}@sure"})
        assert (vote["model"], vote["voting"]["rule"], vote["voting"]["samples"]) == (f"{MODEL}@sure", "pc", 3)
    finally:
        model.presets = before


def test_log_probabilities_are_those_of_the_winner(raw: httpx.Client) -> None:
    vote = hold(raw, **CHAT, voting=VOTING, logprobs=True, top_logprobs=2)
    content = vote["response"]["choices"][0]["logprobs"]["content"]
    record = next(r for r in vote["voting"]["sample_records"] if r["index"] == vote["representative"]["index"])
    assert sum(one["logprob"] for one in content) == pytest.approx(record["sum_logprob"], abs=1e-3)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (TEXT | {"prompt": ["a", "b"]}, "prompt"),
        (TEXT | {"prompt": [[5, 6], [7]]}, "prompt"),
        (TEXT | {"stream": True}, "stream"),
        (TEXT | {"n": 2}, "n"),
        (TEXT | {"best_of": 2}, "best_of"),
        (TEXT | {"max_tokens": 0}, "max_tokens"),
        (TEXT | {"temperature": 0}, "temperature"),
        (TEXT | {"messages": MESSAGES}, "prompt"),
        (TEXT | {"tools": []}, "tools"),
        (TEXT | {"guided_json": {}}, "guided_json"),
        (TEXT | {"response_schema": {}}, "response_schema"),
        (TEXT | {"voting": {"colour": 1}}, "voting.colour"),
        (TEXT | {"voting": []}, "voting"),
        (CHAT | {"best_of": 2}, "best_of"),
        (CHAT | {"messages": []}, "messages"),
        (CHAT | {"max_tokens": "3"}, "max_tokens"),
        ({"messages": MESSAGES, "max_tokens": 3}, "model"),
    ],
)
def test_what_is_wrong_is_named(raw: httpx.Client, fields: dict[str, Any], param: str) -> None:
    refused(post_vote(raw, **fields), param)


def test_one_prompt_in_every_form(raw: httpx.Client) -> None:
    for prompt in (["a b"], [5, 6], [[5, 6]]):
        assert hold(raw, **TEXT | {"prompt": prompt}, voting={"samples": 2})["voting"]["samples"] == 2
    refused(post_vote(raw, **TEXT | {"model": "nobody"}), "model", 404, "model_not_found")


def test_a_client_that_leaves_stores_nothing(raw: httpx.Client, live: Live) -> None:
    if not hasattr(live.runner, "behaviour"):
        pytest.skip("only the runner without a model is slow on demand")
    live.runner.behaviour.step_s = 0.05
    before = len(live.state.votes)
    with httpx.Client(base_url=live.url, timeout=0.2) as hasty, pytest.raises(httpx.ReadTimeout):
        hasty.post("/v1/votes", json=TEXT | {"ignore_eos": True, "max_tokens": 100})
    live.wait(lambda: not live.runner.live and live.state.in_flight == 0)
    assert len(live.state.votes) == before
