"""`voting`: what is true of every vote, whatever the model says; over the fake runner and the embedded model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from server.config import ServeConfig
from server.launch import build_state
from tests.server.conformance.answers import alike, assembled, body, entries, text_of, wait_released, whole
from tests.server.conformance.helpers import (
    PROMPT,
    chat,
    complete,
    data_lines,
    post_chat,
    post_completion,
    stream,
)
from tests.server.conformance.helpers import text_of as streamed_text
from tests.server.live import Live, fake_state, start

POSTS = pytest.mark.parametrize("post", [post_chat, post_completion])
K = 6
LAST_LETTER = {"extract": {"regex": "[A-Za-z0-9]"}, "on_truncated": "keep", "guard_repetition": False}
HELPED: dict[str, Any] = {  # what the client's own helper asks for
    "model": "drafthouse-tiny",
    "messages": [{"role": "user", "content": "Tom has 3 apples."}],
    "seed": 7,
    "max_tokens": 12,
}
WHOLE_TEXT = {"extract": "whole", "on_truncated": "keep", "guard_repetition": False}
PRESETS = {
    "vote": {"voting": {"rule": "pc", "samples": 3, **LAST_LETTER}, "temperature": 0.8},
    "narrow": {"temperature": 0.7, "top_p": 0.3},
}
RULES: list[dict[str, Any]] = [
    {"rule": "sc"},
    {"rule": "pc"},
    {"rule": "rpc", "params": {"min_paths": 3}},
    {"rule": "ppl"},
    {"rule": "bon", "params": {"scorer": "likelihood"}},
    {"rule": "complexity"},
    {"rule": "deepconf", "params": {"window": 4}},
    {"rule": "deepconf", "params": {"mode": "online", "window": 2, "warmup": 3, "confidence_percentile": 50}},
    {"rule": "iew"},
    {"rule": "iew", "params": {"mode": "sequential"}, "samples": 3},
    {"rule": "usc", "params": {"unclear": "first"}},
    {"rule": "verbalised"},
    {"rule": "sc", "stop": {"rule": "esc", "window": 2}},
]
EVERY_RULE = pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values()))[:40])


@pytest.fixture(scope="module", params=["fake", pytest.param("embedded", marks=pytest.mark.slow)])
def shared_server(request: pytest.FixtureRequest) -> Iterator[Live]:
    if request.param == "fake":
        state = fake_state()
        state.models[0].presets = PRESETS
    else:
        state = build_state(ServeConfig(max_model_len=512, presets=PRESETS, threads=1))
    live = start(state)
    yield live
    live.stop()


@pytest.fixture(autouse=True)
def nothing_is_left(raw: httpx.Client) -> Iterator[None]:
    yield
    wait_released(raw)


def report(answer: Mapping[str, Any]) -> dict[str, Any]:
    return dict(answer["drafthouse"]["voting"])


def records(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(report(answer)["sample_records"])


# --- the samples


@POSTS
@pytest.mark.parametrize("more", [{}, {"stop": ["e", "\n"]}, {"temperature": 0.7, "top_p": 0.9}, {"min_tokens": 9}])
def test_a_vote_sees_the_completions_of_n(raw: httpx.Client, post: Any, more: dict[str, Any]) -> None:
    many = body(post(raw, n=K, return_token_ids=True, **more))
    vote = body(post(raw, voting={"samples": K, "return_samples": True}, **more))
    seen = records(vote)
    assert [one["index"] for one in seen] == list(range(K))
    for record, choice in zip(seen, many["choices"], strict=True):
        assert record["token_ids"] == choice["token_ids"] and record["n_tokens"] == len(choice["token_ids"])
        assert record["text"] == text_of(choice) and record["finish_reason"] == choice["finish_reason"]
        assert record["sum_logprob"] == pytest.approx(choice["cumulative_logprob"], abs=1e-3)
        assert record["mean_logprob"] * record["n_tokens"] == pytest.approx(record["sum_logprob"])
        assert record["q"] == pytest.approx(math.exp(record["mean_logprob"]))
    assert alike(vote["usage"], many["usage"])
    assert report(vote)["tokens"] == {
        "prompt": many["usage"]["prompt_tokens"],
        "completion": many["usage"]["completion_tokens"],
        "discarded": 0,
    }


def test_more_samples_extend_the_set(raw: httpx.Client) -> None:
    lists = {
        k: [one["token_ids"] for one in records(body(post_chat(raw, voting={"samples": k, "return_samples": True})))]
        for k in (1, 2, 5, 11)
    }
    assert all(ids == lists[11][:k] for k, ids in lists.items())


@POSTS
def test_one_sample_is_that_sample(raw: httpx.Client, post: Any) -> None:
    plain = body(post(raw))
    for rule in ("sc", "pc", "rpc", "ppl", "usc", "iew", "deepconf", "complexity"):
        vote = body(post(raw, voting={"rule": rule, "samples": 1, **WHOLE_TEXT}))
        assert text_of(vote["choices"][0]) == text_of(plain["choices"][0])
        assert alike(vote["usage"], plain["usage"])
        assert report(vote)["answer"] is None or report(vote)["confidence"] in (None, 1) or rule == "ppl"


def test_the_default_is_self_consistency_of_sixteen(raw: httpx.Client) -> None:
    said = report(body(post_chat(raw, voting={}, max_tokens=2)))
    expected = {"rule": "sc", "samples": 16, "used_samples": 16, "extract": "auto", "equiv": "exact"}
    expected |= {"on_truncated": "abstain", "guard_repetition": True, "use_sample_weights": True}
    expected |= {"return_samples": False, "weight_source": "raw"}
    assert said | expected == said and said["stop"]["rule"] == "none" and "sample_records" not in said
    for rule, stop, samples in (("usc", "none", 8), ("sc", "beta", 40), ("usc", "esc", 40)):
        said = report(body(post_chat(raw, voting={"rule": rule, "stop": stop}, max_tokens=2)))
        assert said["samples"] == samples


# --- the winner


@POSTS
@pytest.mark.parametrize(("rule", "seed"), [("sc", 7), ("pc", 8), ("rpc", 9)])
def test_the_winner_is_the_most_probable_of_the_heaviest(raw: httpx.Client, post: Any, rule: str, seed: int) -> None:
    fields: dict[str, Any] = {"seed": seed, "return_token_ids": True}
    fields |= {"logprobs": True, "top_logprobs": 2} if post is post_chat else {"logprobs": 2}
    many = body(post(raw, n=12, **fields))
    vote = body(post(raw, voting={"rule": rule, "samples": 12, "return_samples": True, **LAST_LETTER}, **fields))
    said, seen = report(vote), records(vote)
    weights = {cluster["id"]: 0.0 for cluster in said["clusters"]}
    first: set[tuple[int, ...]] = set()
    for one in seen:
        fresh = tuple(one["token_ids"]) not in first
        first.add(tuple(one["token_ids"]))
        worth = 1.0 if rule == "sc" else one["q"] if fresh and not one["pruned"] else 0.0
        if one["cluster"] is not None:
            weights[one["cluster"]] += worth
            assert one["index"] in said["clusters"][one["cluster"]]["members"]
            assert one["weight"] == pytest.approx(worth)
    for cluster in said["clusters"]:
        assert cluster["weight"] == pytest.approx(weights[cluster["id"]])
        assert cluster["share"] == pytest.approx(cluster["weight"] / sum(weights.values()))
        assert cluster["count"] == len(cluster["members"])
    mass = {  # settles ties
        c["id"]: sum({tuple(seen[i]["token_ids"]): seen[i]["q"] for i in c["members"]}.values())
        for c in said["clusters"]
    }
    top = max(weights.values())
    tied = [place for place, weight in weights.items() if math.isclose(weight, top, rel_tol=1e-12)]
    best = said["clusters"][max(tied, key=lambda place: mass[place])]
    assert said["tie"] is (len(tied) > 1) and said["answer"] == best["answer"]
    assert said["confidence"] == best["share"]
    candidates = [seen[i] for i in best["members"] if not seen[i]["pruned"]]
    chosen = max(candidates, key=lambda one: (one["q"], -one["index"]))
    (winner,), drawn = vote["choices"], many["choices"][chosen["index"]]
    assert winner["index"] == 0
    assert alike({**winner, "index": 0}, {**drawn, "index": 0})
    counts = {c["id"]: c["count"] for c in said["clusters"]}
    baseline = said["baseline_sc"]
    assert baseline["share"] == pytest.approx(max(counts.values()) / sum(counts.values()))


@POSTS
@pytest.mark.parametrize("voting", [{"rule": "ppl"}, {"rule": "bon", "params": {"scorer": "likelihood"}}])
def test_the_likeliest_sample(raw: httpx.Client, post: Any, voting: dict[str, Any]) -> None:
    vote = body(post(raw, voting={**voting, "samples": 10, "return_samples": True, **LAST_LETTER}))
    best = max((one for one in records(vote) if "abstain_reason" not in one), key=lambda one: one["mean_logprob"])
    assert text_of(vote["choices"][0]) == best["text"]
    assert vote["choices"][0]["cumulative_logprob"] == best["sum_logprob"]


def test_nobody_votes(raw: httpx.Client) -> None:
    voting = {"samples": 5, "extract": {"regex": "no such text"}, "on_truncated": "keep", "return_samples": True}
    vote = body(post_chat(raw, voting=voting))
    said, seen = report(vote), records(vote)
    assert (said["answer"], said["confidence"], said["fallback"]) == (None, None, "all_abstain")
    assert said["abstain_rate"] == 1 and said["clusters"] == [] and said["baseline_sc"] is None
    assert text_of(vote["choices"][0]) == max(seen, key=lambda one: one["mean_logprob"])["text"]
    stopped = report(body(post_chat(raw, voting=voting | {"stop": "beta"})))
    assert stopped["stop"]["fired_at"] is None and stopped["used_samples"] == 5


def test_shorter_answers_than_the_limit(raw: httpx.Client) -> None:
    """`on_truncated`: those that were cut off have no vote unless it is kept."""
    voting = {"samples": 8, "extract": "whole", "return_samples": True, "guard_repetition": False}
    abstain, keep = (
        records(body(post_chat(raw, max_tokens=4, voting=voting | {"on_truncated": name})))
        for name in ("abstain", "keep")
    )
    for one, other in zip(abstain, keep, strict=True):
        cut = one["finish_reason"] == "length"
        assert (one.get("abstain_reason") == "truncated") is cut
        assert one["answer"] == other["answer"] and other.get("abstain_reason") != "truncated"


# --- streams


def progress(events: list[dict[str, Any]], prompt: int = 0) -> list[tuple[int, int]]:
    return [
        (event["voting_progress"]["finished"], event["voting_progress"]["samples"])
        for event in events
        if "voting_progress" in event and event["choices"][0]["index"] == prompt
    ]


@POSTS
@EVERY_RULE
def test_a_stream_adds_up_to_the_whole_answer(raw: httpx.Client, post: Any, rule: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"voting": {"samples": K, **LAST_LETTER, **rule}, "return_token_ids": True}
    fields |= {"logprobs": True, "top_logprobs": 2} if post is post_chat else {"logprobs": 2}
    answer = body(post(raw, **fields))
    events = data_lines(post(raw, **fields, stream=True, stream_options={"include_usage": True}))
    assert alike(whole(answer), assembled(events))
    assert len(answer["choices"]) == 1
    assert all(event.get("usage") is None for event in events[:-1]) and events[-1]["choices"] == []
    assert [at for at, event in enumerate(events) if "drafthouse" in event] == [len(events) - 1]
    counted = progress(events)
    assert [finished for finished, _ in counted] == list(range(1, len(counted) + 1))
    said = report(answer)
    assert said["used_samples"] <= len(counted) <= said["samples"]
    assert {samples for _, samples in counted} == {said["samples"]}
    written = [at for at, event in enumerate(events) for part in event["choices"] if _says_something(part)]
    noted = [at for at, event in enumerate(events) if "voting_progress" in event]
    assert max(noted) < min(written)
    for at in noted:
        (part,) = events[at]["choices"]
        assert part.get("delta", {}) == {} and part.get("text", "") == "" and part["finish_reason"] is None
    if post is post_chat:
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert all("role" not in part["delta"] for event in events[1:] for part in event["choices"])


def _says_something(part: Mapping[str, Any]) -> bool:
    text = part["delta"].get("content") if "delta" in part else part["text"]
    return bool(text) or part["finish_reason"] is not None


@POSTS
def test_the_report_without_usage(raw: httpx.Client, post: Any) -> None:
    events = data_lines(post(raw, stream=True, voting={"samples": 3}))
    assert all("usage" not in event for event in events)
    assert [at for at, event in enumerate(events) if "drafthouse" in event] == [len(events) - 1]
    assert events[-1]["choices"][0]["finish_reason"] is not None


@POSTS
def test_usage_on_every_chunk(raw: httpx.Client, post: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = data_lines(post(raw, stream=True, stream_options=options, voting={"samples": 5}))
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == body(post(raw, n=5))["usage"]["completion_tokens"]
    finished = [at for at, event in enumerate(events) if "voting_progress" in event]
    assert counts[finished[0]] > 0 and counts[finished[-1]] == counts[-1]  # samples count as they are drawn


@POSTS
@pytest.mark.parametrize("interval", [1, 3])
def test_a_stream_in_small_pieces(raw: httpx.Client, post: Any, interval: int) -> None:
    fields: dict[str, Any] = {"voting": {"samples": 4, **LAST_LETTER}, "return_token_ids": True}
    fields |= {"logprobs": True} if post is post_chat else {"logprobs": 0}
    answer = body(post(raw, **fields))
    options = {"include_usage": True}
    assert alike(
        whole(answer),
        assembled(data_lines(post(raw, **fields, stream=True, stream_interval=interval, stream_options=options))),
    )


def test_the_official_client(client: openai.OpenAI) -> None:
    voting = {"rule": "pc", "samples": K, **LAST_LETTER}
    for answer in (chat(client, voting=voting), complete(client, voting=voting)):
        assert len(answer.choices) == 1
    answer = chat(client, voting=voting, logprobs=True, top_logprobs=1)
    chunks = stream(client, voting=voting, stream_options={"include_usage": True})
    assert streamed_text(chunks) == answer.choices[0].message.content
    assert chunks[-1].usage is not None and answer.usage is not None
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
    assert chunks[-1].drafthouse["voting"] == answer.drafthouse["voting"]  # type: ignore[attr-defined]
    with client.chat.completions.stream(**HELPED, extra_body={"voting": voting}) as helper:
        deltas = "".join(event.delta for event in helper if event.type == "content.delta")
    assert deltas == chat(client, **HELPED, voting=voting).choices[0].message.content


# --- several prompts, echo


PROMPTS = [PROMPT, "x = [", "import os\n"]


def test_every_prompt_votes_for_itself(raw: httpx.Client) -> None:
    fields: dict[str, Any] = {"voting": {"samples": 4, "return_samples": True, **LAST_LETTER}, "return_token_ids": True}
    together = body(post_completion(raw, prompt=PROMPTS, logprobs=1, **fields))
    assert [one["index"] for one in together["choices"]] == [0, 1, 2]
    assert len(together["drafthouse"]["voting"]) == 3
    alone = [body(post_completion(raw, prompt=prompt, logprobs=1, **fields)) for prompt in PROMPTS]
    for choice, said, one in zip(together["choices"], together["drafthouse"]["voting"], alone, strict=True):
        assert alike({**choice, "index": 0}, one["choices"][0]) and alike(said, report(one))
    for count in ("prompt_tokens", "completion_tokens"):
        assert together["usage"][count] == sum(one["usage"][count] for one in alone)
    options = {"include_usage": True}
    events = data_lines(post_completion(raw, prompt=PROMPTS, logprobs=1, **fields, stream=True, stream_options=options))
    assert alike(assembled(events), whole(together))
    assert all(progress(events, prompt) == [(i, 4) for i in (1, 2, 3, 4)] for prompt in range(3))
    single = data_lines(post_completion(raw, prompt=PROMPTS, **fields, stream=True))
    assert [at for at, event in enumerate(single) if "drafthouse" in event] == [len(single) - 1]


@pytest.mark.parametrize("logprobs", [None, 2])
def test_echo(raw: httpx.Client, logprobs: int | None) -> None:
    fields = {"echo": True, "logprobs": logprobs, "return_token_ids": True}
    vote = body(post_completion(raw, voting={"samples": 4, "return_samples": True, **LAST_LETTER}, **fields))
    (winner,) = vote["choices"]
    index = next(one["index"] for one in records(vote) if PROMPT + one["text"] == winner["text"])
    drawn = body(post_completion(raw, n=4, **fields))["choices"][index]
    assert alike({**winner, "index": 0}, {**drawn, "index": 0})
    events = data_lines(post_completion(raw, voting={"samples": 4, **LAST_LETTER}, stream=True, **fields))
    text = "".join(part["text"] for event in events for part in event["choices"])
    assert text == winner["text"]
    if logprobs is not None:
        listed = [entry for event in events for part in event["choices"] if part["logprobs"] for entry in entries(part)]
        assert alike(listed, entries(winner))


def test_prompt_logprobs(raw: httpx.Client) -> None:
    plain = body(post_chat(raw, prompt_logprobs=1))
    vote = body(post_chat(raw, prompt_logprobs=1, voting={"samples": 3}))
    assert alike(vote["prompt_logprobs"], plain["prompt_logprobs"])


# --- how it is asked for, and asked for again


@EVERY_RULE
def test_the_report_asks_for_the_same_vote(raw: httpx.Client, rule: dict[str, Any]) -> None:
    first = body(post_chat(raw, voting={"samples": K, "return_samples": True, **LAST_LETTER, **rule}))
    again = body(post_chat(raw, voting=report(first), seed=first["drafthouse"]["seed"]))
    assert alike(report(again), report(first))
    assert alike(again["choices"], first["choices"]) and alike(again["usage"], first["usage"])


def test_a_drawn_seed_can_be_repeated(raw: httpx.Client) -> None:
    first = body(post_chat(raw, seed=None, voting={"samples": 3, "return_samples": True}))
    again = body(post_chat(raw, seed=first["drafthouse"]["seed"], voting=report(first)))
    assert alike(report(again), report(first))


def test_spellings(raw: httpx.Client) -> None:
    voting = {"rule": "pc", "samples": 3, **LAST_LETTER}
    plain = body(post_chat(raw, voting=voting))
    for given in (voting, json.dumps(voting)):
        assert alike(report(body(post_chat(raw, vllm_xargs={"voting": given}))), report(plain))
    assert alike(report(body(post_chat(raw, model="drafthouse-tiny@vote", temperature=1.0))), report(plain))
    assert body(post_chat(raw, voting=None))["drafthouse"]["voting"] is None


def test_presets(raw: httpx.Client) -> None:
    said = report(body(post_chat(raw, model="drafthouse-tiny@vote")))
    assert (said["rule"], said["samples"], said["flags"]) == ("pc", 3, ["off_model"])
    said = report(body(post_chat(raw, model="drafthouse-tiny@vote", voting={"rule": "sc", "samples": 2})))
    assert (said["rule"], said["samples"]) == ("sc", 2)
    said = report(body(post_chat(raw, model="drafthouse-tiny@narrow", voting={"samples": 2})))
    assert said["flags"] == ["off_model"]


# --- flags and certificates


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({}, []),
        ({"temperature": 1}, []),
        ({"top_p": 1.0}, []),
        ({"draw": "gumbel"}, []),
        ({"temperature": 0.7}, ["off_model"]),
        ({"top_p": 0.9}, ["off_model"]),
        ({"top_k": 5}, ["off_model"]),
        ({"min_p": 0.1}, ["off_model"]),
        ({"logit_bias": {"9": 1}}, ["off_model"]),
        ({"presence_penalty": 0.5}, ["off_model"]),
        ({"min_tokens": 3}, ["off_model"]),
        ({"draw": "arithmetic"}, ["not_iid"]),
        ({"draw": "arithmetic", "temperature": 0.5}, ["off_model", "not_iid"]),
    ],
)
def test_what_is_known_about_the_samples(raw: httpx.Client, fields: dict[str, Any], flags: list[str]) -> None:
    said = report(body(post_chat(raw, **fields, voting={"samples": 3, **LAST_LETTER})))
    assert said["flags"] == flags
    assert (said["cert"] is None) is ("not_iid" in flags)
    if said["cert"] is not None:
        assert said["cert"].keys() == {"target", "e", "alpha", "certified", "n_used"}
        assert said["cert"]["n_used"] == 3 and said["cert"]["alpha"] == 0.05


def test_raw_weights_at_another_temperature(raw: httpx.Client) -> None:
    """q of equal tokens is equal, however they were drawn."""
    voting = {"samples": 8, "return_samples": True, **LAST_LETTER}
    seen: dict[tuple[int, ...], float] = {}
    matches = 0
    for temperature in (1.0, 0.5, 0.3, 0.2):
        for one in records(body(post_chat(raw, temperature=temperature, max_tokens=2, voting=voting))):
            ids = tuple(one["token_ids"])
            matches += ids in seen
            assert seen.setdefault(ids, one["q"]) == pytest.approx(one["q"], rel=1e-4)
    assert matches > 3


# --- DeepConf, online


@pytest.mark.parametrize("window", [1, 3])
def test_traces_end_where_their_confidence_falls(raw: httpx.Client, window: int) -> None:
    params = {"window": window, "topk": 8}
    common = {"samples": 12, "return_samples": True, **LAST_LETTER}
    full = records(body(post_chat(raw, voting={"rule": "deepconf", "params": params, **common})))
    online = {**params, "mode": "online", "warmup": 4, "confidence_percentile": 40, "consensus_tau": None}
    vote = body(post_chat(raw, voting={"rule": "deepconf", "params": online, **common}))
    again = body(post_chat(raw, voting={"rule": "deepconf", "params": online, **common}))
    assert alike(report(again), report(vote))

    def windows(confidences: list[float]) -> list[float]:
        """Mean of the window that ends at each token, or of all tokens where there are fewer."""
        wide = min(window, len(confidences))
        return [sum(confidences[at - wide : at]) / wide for at in range(wide, len(confidences) + 1)]

    threshold = float(np.percentile([min(windows(one["confs"])) for one in full[:4]], 60))
    said, ended = report(vote), 0
    assert said["details"]["threshold"] == pytest.approx(threshold, rel=1e-4)
    for one, other in zip(full, records(vote), strict=True):
        means = windows(one["confs"]) if len(one["confs"]) >= window else []
        low = [at + window for at, mean in enumerate(means) if mean < threshold]
        if one["index"] >= 4 and low and low[0] < one["n_tokens"]:
            ended += 1
            assert other["token_ids"] == one["token_ids"][: low[0]]
            assert (other["abstain_reason"], other["finish_reason"]) == ("low_confidence", "length")
            assert other["cluster"] is None and other["weight"] == 0
        else:
            assert other["token_ids"] == one["token_ids"] and other["finish_reason"] == one["finish_reason"]
            lowest = min(windows(one["confs"]))
            if one["index"] < 4 and lowest < threshold:
                assert other["pruned"] and other["weight"] == 0 and other["prune_reason"] == "low_confidence"
            elif other.get("abstain_reason") is None:
                assert other["weight"] == pytest.approx(lowest, rel=1e-4)
    assert ended >= 2
    assert vote["usage"]["completion_tokens"] == sum(one["n_tokens"] for one in records(vote))
    assert said["confidence"] is None or 0 < said["confidence"] <= 1


def test_the_report_names_who_does_not_count_and_why(raw: httpx.Client) -> None:
    params = {"window": 2, "topk": 8, "mode": "online", "warmup": 4, "confidence_percentile": 40, "consensus_tau": None}
    asked = {"rule": "deepconf", "params": params, "samples": 12, **LAST_LETTER}
    short = body(post_chat(raw, voting=asked))
    whole = body(post_chat(raw, voting={**asked, "return_samples": True}))
    for name, reason in (("pruned", "prune_reason"), ("abstained", "abstain_reason")):
        expected = [{"index": one["index"], "reason": one[reason]} for one in records(whole) if reason in one]
        assert report(short)[name] == report(whole)[name] == expected
        assert {"low_confidence"} <= {one["reason"] for one in expected}
    assert "sample_records" not in report(short)


# --- at the same time


def test_votes_do_not_disturb_each_other(raw: httpx.Client) -> None:
    asked = [
        {"seed": seed, "voting": {"samples": 5, "return_samples": True, **LAST_LETTER, **rule}}
        for seed in (1, 2)
        for rule in ({"rule": "pc"}, {"rule": "sc", "stop": {"rule": "esc", "window": 2}})
    ]
    alone = [body(post_completion(raw, **one)) for one in asked]
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(post_completion, raw, **one) for one in asked * 2]
        together = [body(one.result()) for one in running]
    for one, answer in zip(alone * 2, together, strict=True):
        # how far samples behind the last one came is a question of time
        assert alike(_timeless(report(answer)), _timeless(report(one)))
        assert alike(answer["choices"], one["choices"])


def _timeless(said: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in said.items() if name != "tokens"}


def test_a_client_that_leaves(raw: httpx.Client, live: Live) -> None:
    for voting in ({"samples": 16}, {"samples": 40, "stop": "beta"}, {"rule": "deepconf", "samples": 20}):
        asked = {"model": "drafthouse-tiny", "prompt": PROMPT, "max_tokens": 400, "ignore_eos": True}
        with raw.stream("POST", "/v1/completions", json={**asked, "stream": True, "voting": voting}) as response:
            next(response.iter_lines())
        wait_released(raw)
    assert raw.get("/health").status_code == 200
