"""Votes over samples that a request brings along: the same as offline, and what is asked of them."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx
import pytest

from engine.request import DecodeRequest
from samplers.contract import SamplerError
from server.votes.scoring.endpoint import RewardEndpoint
from tests.server.conformance.helpers import MODEL, refused
from tests.server.live import Live
from tests.server.votes.stored import RECORDS, hold, post_vote
from voting.answers.equivalence import read_equivalence
from voting.answers.extraction import read_extraction
from voting.contract import VOTING_RULES
from voting.outcome import Outcome
from voting.poll import Poll, Reading
from voting.samples_file import read_problem

PARAMS: dict[str, dict[str, Any]] = {"bon": {"scorer": "judge"}}
# sequential iew flags its chains as depending on each other; recorded samples of other rules are taken as they come
RULES = sorted(rule.name for rule in VOTING_RULES)


def drawn(seed: int, answered: bool) -> list[dict[str, Any]]:
    """A problem's samples, with everything that a rule may read."""
    rng = random.Random(seed)
    records = []
    for index in range(12):
        answer = rng.choice(["7", "7.0", "1/2", "0.5", "9", None])
        length = rng.randint(1, 6)
        records.append(
            {
                "index": 2 * index,
                "text": f"step\n\nstep {rng.randint(0, 3)}\nConfidence: {rng.randint(0, 100)}\n"
                + ("nothing" if answer is None else f"#### {answer}"),
                "token_ids": [rng.randrange(50) for _ in range(length)],
                "mean_logprob": -rng.random(),
                "finish_reason": rng.choice(["stop", "stop", "stop", "length"]),
                "topk_entropy": [rng.random() for _ in range(length)],
                "confs": [1 + 10 * rng.random() for _ in range(length)],
                "scores": {"judge": rng.random(), "usc": float(index == 3)},
                **({"answer": answer} if answered else {}),
            }
        )
    rng.shuffle(records)
    return records


def offline(records: list[dict[str, Any]], rule: str, equiv: str, extract: str | None, prompt: str) -> Outcome:
    problem = read_problem({"prompt": prompt, "samples": records}, "0")
    extraction = None if extract is None else read_extraction(extract)
    poll = Poll(VOTING_RULES.get(rule), PARAMS.get(rule, {}), Reading(read_equivalence(equiv), None, extraction))
    return poll.hold(poll.read(problem))


def without_verdicts(vote: dict[str, Any]) -> dict[str, Any]:
    for row in vote["voting"]["clusters"]:
        assert row.pop("rejected") is False
    return vote


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("equiv", ["exact", "string"])
@pytest.mark.parametrize("rule", RULES)
def test_a_vote_over_samples_is_what_replay_finds(raw: httpx.Client, rule: str, equiv: str, answered: bool) -> None:
    for seed in range(4):
        records = drawn(seed, answered)
        outcome = offline(records, rule, equiv, None if answered else "auto", "Which one?")
        voting = {"rule": rule, "params": PARAMS.get(rule, {}), "equiv": equiv, "return_samples": True}
        found = without_verdicts(hold(raw, samples_data=records, prompt="Which one?", voting=voting))
        report = json.loads(json.dumps(outcome.report()))
        assert {name: found["voting"][name] for name in report} == report
        assert found["voting"]["sample_records"] == json.loads(json.dumps(outcome.records()))
        assert (found["answer"], found["confidence"]) == (outcome.answer, outcome.confidence)
        assert found["response"] is None and found["usage"]["total_tokens"] == 0
        shown = next(one for one in outcome.samples if one.index == outcome.representative)
        expected = None if outcome.winner is None else {"index": shown.index, "text": shown.text}
        assert found["representative"] == expected


def test_nothing_is_generated_and_no_model_is_needed(raw: httpx.Client, live: Live) -> None:
    vote = hold(raw)
    assert (vote["object"], vote["model"], vote["status"], vote["log"]) == ("vote", None, "open", [])
    assert (vote["answer"], vote["confidence"]) == ("7", 0.5)
    assert [row["members"] for row in vote["voting"]["clusters"]] == [[0, 3], [1, 2, 5], [4]]
    assert vote["representative"] == {"index": 2, "text": "c #### 7.0"}
    assert vote["voting"]["id"] == vote["id"] and vote["id"].startswith("vote_")
    assert vote["expires_at"] - vote["created"] == 3600
    assert live.runner.requests == []
    assert hold(raw, model=f"{MODEL}@greedy")["model"] == f"{MODEL}@greedy"


def test_what_a_vote_says_asks_for_the_same_vote(raw: httpx.Client) -> None:
    for records in (RECORDS, drawn(1, True)):
        first = hold(raw, samples_data=records, voting={"rule": "pc", "return_samples": True})
        again = hold(raw, samples_data=first["voting"]["sample_records"], voting=first["voting"] | {"extract": None})
        for name in ("answer", "confidence", "representative"):
            assert again[name] == first[name]
        assert again["voting"]["clusters"] == first["voting"]["clusters"]


def test_options_of_the_prompt_are_answers(raw: httpx.Client) -> None:
    records = [{"text": "It is (B)."}, {"text": "The answer is b"}, {"text": "A"}]
    prompt = "Which?\n(A) this\n(B) that"
    assert hold(raw, samples_data=records, prompt=prompt)["answer"] == "B"
    messages = [{"role": "user", "content": prompt}]
    assert hold(raw, samples_data=records, messages=messages)["answer"] == "B"


def test_a_stopping_rule_looks_at_them_in_their_order(raw: httpx.Client) -> None:
    records = [{"text": f"#### {7 if at < 6 else 8}", "index": 9 - at} for at in range(10)]  # 8 8 8 8 7 7 ...
    vote = hold(raw, samples_data=records, voting={"stop": {"rule": "esc", "window": 3}})
    assert (vote["answer"], vote["voting"]["used_samples"], vote["voting"]["stop"]["fired_at"]) == ("8", 3, 3)
    assert [row["members"] for row in vote["voting"]["clusters"]] == [[0, 1, 2]]


# --- judges and scorers


def test_a_judge_is_asked_if_there_is_one(raw: httpx.Client, live: Live) -> None:
    reply = live.codec.encode_plain("The most consistent response is Response 1")
    live.runner.behaviour.script = lambda request, choice: reply
    voting = {"rule": "usc", "params": {"shuffle": False}}
    alone = hold(raw, voting=voting)
    assert (alone["answer"], alone["voting"]["fallback"], live.runner.requests) == ("7", "usc_parse", [])
    asked = hold(raw, voting=voting, model=MODEL, prompt="How many?", seed=3, priority=2, cache_salt="salt")
    assert (asked["answer"], asked["voting"]["fallback"]) == ("8", None)
    (request,) = live.runner.requests
    assert isinstance(request, DecodeRequest)
    assert (request.seed, request.priority, request.cache_salt) == (3, 2, "salt")
    assert "How many?" in live.codec.decode(list(request.prompt_ids))
    tokens = asked["voting"]["tokens"]
    assert tokens == {"prompt": len(request.prompt_ids), "completion": len(reply) + 1, "discarded": 0}
    usage = asked["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (tokens["prompt"], tokens["completion"])
    recorded = [record | {"scores": {"usc": float(place == 4)}} for place, record in enumerate(RECORDS)]
    assert hold(raw, samples_data=recorded, voting=voting, model=MODEL)["answer"] == "9"
    assert len(live.runner.requests) == 1


def test_scores_are_taken_from_the_records_or_asked_for(raw: httpx.Client, live: Live) -> None:
    by_model = {"rule": "bon", "params": {"scorer": {"model": MODEL}}}
    found = hold(raw, voting=by_model)
    texts = {len(request.prompt_ids) for request in live.runner.requests}
    assert len(live.runner.requests) == 6 and found["usage"]["prompt_tokens"] >= sum(texts)
    assert hold(raw, voting={"rule": "bon", "params": {"scorer": "likelihood"}})["answer"] == "9"
    scores = [record | {"scores": {"mine": 0.9 if place == 3 else 0.1}} for place, record in enumerate(RECORDS)]
    mine = {"rule": "bon", "params": {"scorer": "mine"}}
    assert hold(raw, samples_data=scores, voting=mine)["representative"]["index"] == 3
    refused(post_vote(raw, voting=mine), "voting.params.scorer")


def test_an_endpoint_that_does_not_answer_costs_the_scores(raw: httpx.Client, live: Live) -> None:
    live.state.scorers = {"gone": RewardEndpoint("http://127.0.0.1:9/", 1.0)}
    try:
        vote = hold(raw, voting={"rule": "bon", "params": {"scorer": "gone"}})
    finally:
        live.state.scorers = {}
    assert (vote["answer"], vote["voting"]["flags"]) == (None, ["scorer_failed"])


# --- refusals

RECORD = {"text": "a #### 7"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"samples_data": []}, "samples_data"),
        ({"samples_data": {}}, "samples_data"),
        ({"samples_data": ["a"]}, "samples_data[0]"),
        ({"samples_data": [RECORD, {}]}, "samples_data[1].text"),
        ({"samples_data": [RECORD, {"text": 1}]}, "samples_data[1].text"),
        ({"samples_data": [RECORD, RECORD | {"colour": 1}]}, "samples_data[1].colour"),
        ({"samples_data": [RECORD, RECORD | {"index": 0}]}, "samples_data[1].index"),
        ({"samples_data": [RECORD, RECORD | {"mean_logprob": 1}]}, "samples_data[1].mean_logprob"),
        ({"samples_data": [RECORD] * 513}, "samples_data"),
        ({"voting": {"samples": 6}}, "voting.samples"),
        ({"voting": {"samples": 0}}, "voting.samples"),
        ({"voting": {"rule": "best"}}, "voting.rule"),
        ({"voting": {"colour": 1}}, "voting.colour"),
        ({"voting": {"params": {"colour": 1}}}, "voting.params.colour"),
        ({"voting": {"at_once": 2}}, "voting.at_once"),
        ({"voting": {"reallocate": True}}, "voting.reallocate"),
        ({"voting": {"rule": "iew", "params": {"mode": "sequential"}, "stop": "mode_cert"}}, "voting.stop"),
        ({"voting": "sc"}, "voting"),
        ({"temperature": 0.5}, "temperature"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"sampler": "min_p"}, "sampler"),
        ({"stream": True}, "stream"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"seed": "x"}, "seed"),
        ({"guided_json": {}}, "guided_json"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(raw: httpx.Client, fields: dict[str, Any], param: str) -> None:
    refused(raw.post("/v1/votes", json={"samples_data": RECORDS} | fields), param)


def test_both_forms_of_a_prompt(raw: httpx.Client) -> None:
    messages = [{"role": "user", "content": "x"}]
    refused(post_vote(raw, samples_data=RECORDS, messages=messages, prompt="x"), "prompt")
    refused(raw.post("/v1/votes", json={"model": MODEL}), "messages")
    refused(post_vote(raw, model="nobody"), "model", 404, "model_not_found")


@pytest.mark.parametrize(
    ("rule", "field"),
    [("rpc", "mean_logprob"), ("pc", "mean_logprob"), ("deepconf", "confs"), ("iew", "topk_entropy")],
)
def test_a_rule_that_reads_what_is_not_recorded(raw: httpx.Client, rule: str, field: str) -> None:
    """The path counts records as they were sent; what abstains anyway needs nothing."""
    records = drawn(5, True)
    read = [place for place, one in enumerate(records) if one["answer"] and one["finish_reason"] == "stop"]
    for place, record in enumerate(records):
        if place not in read:
            del record[field]
    hold(raw, samples_data=records, voting={"rule": rule})
    del records[read[-1]][field]
    refused(post_vote(raw, samples_data=records, voting={"rule": rule}), f"samples_data[{read[-1]}].{field}")
    with pytest.raises(SamplerError, match=field):
        offline(records, rule, "exact", None, "")


def test_a_stopping_rule_that_weighs_needs_log_probabilities(raw: httpx.Client) -> None:
    stop = {"rule": "mode_cert", "weighted": True}
    hold(raw, voting={"stop": stop})
    records = [{name: value for name, value in one.items() if name != "mean_logprob"} for one in RECORDS]
    refused(post_vote(raw, samples_data=records, voting={"stop": stop}), "samples_data[0].mean_logprob")


def test_fields_of_votes_are_refused_elsewhere(raw: httpx.Client) -> None:
    messages = [{"role": "user", "content": "x"}]
    chat = {"model": MODEL, "messages": messages, "samples_data": RECORDS}
    refused(raw.post("/v1/chat/completions", json=chat), "samples_data")
    text = {"model": MODEL, "prompt": "x", "code": {"tests": []}}
    refused(raw.post("/v1/completions", json=text), "code")
