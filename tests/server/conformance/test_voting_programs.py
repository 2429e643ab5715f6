"""Votes over samples that a program makes, with the embedded model: their weights, those that are absent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.config import ServeConfig
from server.launch import build_state
from tests.server.conformance.answers import alike, assembled, body, text_of, wait_released, whole
from tests.server.conformance.helpers import data_lines, post_chat, post_completion, refused
from tests.server.conformance.test_voting import LAST_LETTER, progress, records, report
from tests.server.live import Live, start

pytestmark = pytest.mark.slow

POSTS = pytest.mark.parametrize("post", [post_chat, post_completion])
EAGER = {"name": "eager", "theta": 0.5}
ITEMS = [
    {"name": "priority"},
    {"name": "beam", "beam_width": 6},
    EAGER,
    {"name": "tree", "budget": 6},
    {"name": "superposed"},
]


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Live]:
    live = start(build_state(ServeConfig(max_model_len=512, threads=1)))
    yield live
    live.stop()


@pytest.fixture(autouse=True)
def nothing_is_left(raw: httpx.Client) -> Iterator[None]:
    yield
    wait_released(raw)


@POSTS
@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item["name"])
def test_a_vote_over_the_choices_of_a_program(raw: httpx.Client, post: Any, item: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"sampler": item, "max_tokens": 16, "return_token_ids": True}
    fields |= {"logprobs": True, "top_logprobs": 2} if post is post_chat else {"logprobs": 2}
    many = body(post(raw, n=6, **fields))
    vote = body(post(raw, voting={"samples": 6, "return_samples": True, **LAST_LETTER}, **fields))
    said, seen = report(vote), records(vote)
    assert [one["token_ids"] for one in seen] == [choice["token_ids"] for choice in many["choices"]]
    assert vote["usage"]["completion_tokens"] == many["usage"]["completion_tokens"]
    assert "not_iid" in said["flags"] and said["cert"] is None
    assert vote["drafthouse"]["program"]["name"] == item["name"]
    index = next(one["index"] for one in seen if one["token_ids"] == vote["choices"][0]["token_ids"])
    assert alike({**vote["choices"][0], "index": 0}, {**many["choices"][index], "index": 0})
    events = data_lines(
        post(
            raw,
            voting={"samples": 6, "return_samples": True, **LAST_LETTER},
            **fields,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert alike(assembled(events), whole(vote))
    assert progress(events)[-1] == (len(seen), len(seen))


def test_leaves_weigh_what_their_tree_says(raw: httpx.Client) -> None:
    many = body(post_chat(raw, sampler=EAGER, n=8, max_tokens=12))
    weights = [choice["drafthouse"]["tree_weight"] for choice in many["choices"]]
    assert len(set(weights)) > 1
    for rule in ("sc", "pc"):
        for used in (True, False):
            voting = {"rule": rule, "samples": 8, "return_samples": True, "use_sample_weights": used, **LAST_LETTER}
            vote = body(post_chat(raw, sampler=EAGER, max_tokens=12, voting=voting))
            seen = records(vote)
            assert [one["sample_weight"] for one in seen] == pytest.approx(weights if used else [1.0] * len(weights))
            for cluster in report(vote)["clusters"]:
                members = [seen[index] for index in cluster["members"]]
                worth = [one["sample_weight"] if rule == "sc" else one["q"] for one in members]
                assert cluster["weight"] == pytest.approx(sum(worth), rel=1e-6)
            assert report(vote)["cert"] is None


def test_choices_that_are_absent(raw: httpx.Client) -> None:
    item = {"name": "priority", "regex": "(yes|no|maybe)", "dedupe": "text"}
    fields = {"sampler": item, "max_tokens": 8}
    voting = {"samples": 12, "extract": "whole", "return_samples": True, "rule": "pc"}
    vote = body(post_completion(raw, voting=voting, **fields))
    said = report(vote)
    assert said["used_samples"] == 3 and {one["text"] for one in records(vote)} == {"yes", "no", "maybe"}
    assert said["answer"] == text_of(vote["choices"][0]) == max(records(vote), key=lambda one: one["q"])["text"]
    events = data_lines(post_completion(raw, voting=voting, stream=True, **fields))
    assert progress(events)[-1][0] == 3 and alike(report(events[-1]), said)
    nothing = {"name": "priority", "regex": "[a-z]+"}
    refused(
        post_completion(raw, sampler=nothing, allowed_token_ids=[8], voting={"samples": 3}),
        code="constraint_unsatisfiable",
    )


def test_what_programs_exclude(raw: httpx.Client) -> None:
    for stop in ("beta", "esc", "mode_cert"):
        refused(post_chat(raw, sampler="priority", voting={"stop": stop}), "voting.stop")
    for rule, params in (("iew", {"mode": "sequential"}), ("deepconf", {"mode": "online"})):
        refused(post_chat(raw, sampler="priority", voting={"rule": rule, "params": params}), "voting.rule")


def test_programs_share_what_is_left_over(raw: httpx.Client) -> None:
    """A prompt that forks less leaves sequences to others, whose programs begin again with more of them."""
    voting = {"samples": 4, "reallocate": True, "return_samples": True, **LAST_LETTER}
    granted = 0
    for theta in (0.5, 1.5, 2.5):
        fields = {"sampler": {"name": "eager", "theta": theta}, "max_tokens": 12, "prompt": ["1 2 3 4", "def ", "The "]}
        vote = body(post_completion(raw, voting=voting, **fields))
        said = vote["drafthouse"]["voting"]
        budgets = [one["budget"] for one in said]
        assert len({(one["saved"], one["unspent"]) for one in budgets}) == 1
        assert sum(one["granted"] for one in budgets) + budgets[0]["unspent"] == budgets[0]["saved"]
        for one, choice in zip(said, vote["choices"], strict=True):
            more = one["budget"]["granted"]
            granted += more
            assert one["used_samples"] <= 4 + more <= 8
            assert (one["tokens"]["discarded"] > 0) is (more > 0)
            again = {**fields, "prompt": fields["prompt"][choice["index"]], "n": 4 + more}
            alone = body(post_completion(raw, **again))
            assert [record["text"] for record in one["sample_records"]] == [text_of(each) for each in alone["choices"]]
        assert vote["usage"]["completion_tokens"] == sum(one["tokens"]["completion"] for one in said)
    assert granted


@POSTS
def test_arithmetic_codes_form_one_group(raw: httpx.Client, post: Any) -> None:
    fields = {"draw": "arithmetic", "return_token_ids": True}
    many = body(post(raw, n=6, **fields))
    vote = body(post(raw, voting={"samples": 6, "return_samples": True, **LAST_LETTER}, **fields))
    assert [one["token_ids"] for one in records(vote)] == [choice["token_ids"] for choice in many["choices"]]
    assert report(vote)["flags"] == ["not_iid"] and report(vote)["cert"] is None


@pytest.mark.parametrize("how", ["heal", "exact"])
def test_behind_a_prompt_whose_end_is_written_anew(raw: httpx.Client, how: str) -> None:
    fields = {"prompt": "def add_num", "prompt_boundary": how, "return_token_ids": True, "max_tokens": 8}
    many = body(post_completion(raw, n=6, **fields))
    vote = body(post_completion(raw, voting={"samples": 6, "return_samples": True, **LAST_LETTER}, **fields))
    assert [one["text"] for one in records(vote)] == [text_of(choice) for choice in many["choices"]]
    assert vote["usage"]["completion_tokens"] == many["usage"]["completion_tokens"]
    assert text_of(vote["choices"][0]) in {text_of(choice) for choice in many["choices"]}


def test_stops_over_the_embedded_model(raw: httpx.Client) -> None:
    """The samples of a vote that stops are the first of those of one that does not."""
    letters = {"extract": {"regex": "[0-9]"}, "on_truncated": "keep", "return_samples": True}
    every = records(body(post_chat(raw, voting={"samples": 40, **letters})))
    for stop in ("beta", {"rule": "esc", "window": 3}, {"rule": "mode_cert", "alpha": 0.3}):
        vote = body(post_chat(raw, voting={"samples": 40, "stop": stop, **letters}))
        used = report(vote)["used_samples"]
        assert [one["token_ids"] for one in records(vote)] == [one["token_ids"] for one in every[:used]]
        tokens = report(vote)["tokens"]
        assert tokens["completion"] - tokens["discarded"] == sum(one["n_tokens"] for one in every[:used])
        assert report(vote)["stop"]["fired_at"] in (used, None)
