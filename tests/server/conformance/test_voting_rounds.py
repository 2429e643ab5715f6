"""Votes that ask more than once: attempts in a chain, judges, screened traces; and rules that change the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from engine.request import DecodeRequest
from tests.server.conformance.answers import body, text_of, wait_released
from tests.server.conformance.helpers import MESSAGES, data_lines, post_chat, post_completion, refused
from tests.server.conformance.scripted import answers, length, say
from tests.server.conformance.test_voting import records, report
from tests.server.live import Live, fake_state, start
from voting.chain import INSTRUCTION
from voting.rules.verbalised import INSTRUCTION as CONFIDENCE

POSTS = pytest.mark.parametrize("post", [post_chat, post_completion])
CHAIN = {"rule": "iew", "params": {"mode": "sequential"}}


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


def prompts(live: Live, requests: list[DecodeRequest]) -> list[str]:
    return [live.codec.decode(list(request.prompt_ids)) for request in requests]


# --- chains


@POSTS
@pytest.mark.parametrize("history", ["last", "all"])
def test_attempts_see_what_was_tried_before(raw: httpx.Client, live: Live, post: Any, history: str) -> None:
    texts = answers(5, 6, 6)
    say(live, texts)
    voting = {**CHAIN, "params": {"mode": "sequential", "history": history}, "samples": 3, "return_samples": True}
    vote = body(post(raw, voting=voting))
    asked = prompts(live, live.runner.requests)
    assert len(asked) == 3 and all(request.n == 1 for request in live.runner.requests)
    assert [request.first_choice for request in live.runner.requests] == [0, 1, 2]
    assert [prompt.count(INSTRUCTION) for prompt in asked] == [0, 1, 2 if history == "all" else 1]
    for index, prompt in enumerate(asked):
        seen = [text in prompt for text in (texts[0], texts[1])]
        assert seen == [[False, False], [True, False], [history == "all", True]][index]
        assert asked[0][:40] in prompt
    said = report(vote)
    assert [one["text"] for one in records(vote)] == texts
    assert said["answer"] == "6" and "not_iid" in said["flags"] and said["cert"] is None
    read = sum(len(request.prompt_ids) for request in live.runner.requests)
    written = sum(length(live, text) for text in texts)
    assert said["tokens"] == {"prompt": read, "completion": written, "discarded": 0}
    assert vote["usage"]["prompt_tokens"] == read and vote["usage"]["completion_tokens"] == written


def test_the_first_attempt_is_the_plain_completion(raw: httpx.Client) -> None:
    plain = body(post_chat(raw, return_token_ids=True))
    chain = records(body(post_chat(raw, voting={**CHAIN, "samples": 2, "return_samples": True})))
    assert chain[0]["token_ids"] == plain["choices"][0]["token_ids"]
    longer = records(body(post_chat(raw, voting={**CHAIN, "samples": 4, "return_samples": True})))
    assert [one["token_ids"] for one in longer[:2]] == [one["token_ids"] for one in chain]


@POSTS
def test_a_chain_that_is_longer_than_the_context(raw: httpx.Client, live: Live, post: Any) -> None:
    say(live, lambda index: f"{index} " * 60 + f"#### {index % 2}")
    params = {"mode": "sequential", "history": "all"}
    voting = {"rule": "iew", "params": params, "samples": 9, "return_samples": True, "guard_repetition": False}
    vote = body(post(raw, voting=voting, max_tokens=200))
    said = report(vote)
    assert "chain_truncated" in said["flags"] and 2 <= said["used_samples"] < 9
    assert len(records(vote)) == said["used_samples"] == len(live.runner.requests)
    assert all(len(one.prompt_ids) + one.max_tokens <= 512 for one in live.runner.requests)
    whole = {**voting, "samples": 2}
    assert "chain_truncated" not in report(body(post(raw, voting=whole, max_tokens=200)))["flags"]
    events = data_lines(post(raw, voting=voting, max_tokens=200, stream=True))
    assert events[-1]["drafthouse"]["voting"] == said


@POSTS
def test_a_chain_shows_the_prompt_of_its_winner(raw: httpx.Client, live: Live, post: Any) -> None:
    """`prompt_token_ids` of the choice are those that its attempt was given."""
    say(live, answers(5, 6, 6))
    voting = {**CHAIN, "samples": 3, "return_samples": True}
    vote = body(post(raw, voting=voting, return_token_ids=True))
    (winner,) = vote["choices"]
    index = next(one["index"] for one in records(vote) if one["token_ids"] == winner["token_ids"])
    own = list(live.runner.requests[index].prompt_ids)
    assert winner["prompt_token_ids"] == own


def test_a_chain_may_stop(raw: httpx.Client, live: Live) -> None:
    say(live, answers(*[4] * 9))
    vote = body(post_chat(raw, voting={**CHAIN, "samples": 9, "stop": {"rule": "esc", "window": 3}}))
    assert report(vote)["stop"]["fired_at"] == 3 and len(live.runner.requests) == 3
    assert vote["usage"]["completion_tokens"] == 3 * length(live, answers(4)[0])


def test_chains_of_several_prompts(raw: httpx.Client, live: Live) -> None:
    say(live, answers(5, 6), first=answers(7, 8))
    vote = body(post_completion(raw, prompt=["the first", "another"], voting={**CHAIN, "samples": 2}))
    assert [one["used_samples"] for one in vote["drafthouse"]["voting"]] == [2, 2]
    read = sum(len(request.prompt_ids) for request in live.runner.requests)
    assert vote["usage"]["prompt_tokens"] == read


def test_a_chain_at_temperature_zero(raw: httpx.Client) -> None:
    assert body(post_chat(raw, temperature=0, voting={**CHAIN, "samples": 3}))["drafthouse"]["voting"]["samples"] == 3


# --- judges


@POSTS
def test_the_judge_decides_and_is_counted(raw: httpx.Client, live: Live, post: Any) -> None:
    texts, verdict = answers(5, 6, None, 6, 7), "The most consistent response is Response 4."
    say(live, texts, judge=verdict)
    voting = {"rule": "usc", "samples": 5, "params": {"shuffle": False}}
    vote = body(post(raw, voting=voting))
    drawn, judging = live.runner.requests
    (question,) = prompts(live, [judging])
    assert [text in question for text in texts] == [True, True, False, True, True]
    assert "Response 4" in question and "Response 5" not in question
    assert judging.chain.greedy and judging.max_tokens == 64
    assert text_of(vote["choices"][0]) == texts[4]  # the fourth of those that have an answer
    said = report(vote)
    assert (said["answer"], said["confidence"], said["fallback"]) == ("7", None, None)
    assert said["baseline_sc"] == {"answer": "6", "share": 0.5}
    written = sum(length(live, text) for text in texts) + length(live, verdict)
    assert vote["usage"]["completion_tokens"] == written == said["tokens"]["completion"]
    assert vote["usage"]["prompt_tokens"] == len(drawn.prompt_ids) + len(judging.prompt_ids) == said["tokens"]["prompt"]
    streamed = data_lines(post(raw, voting=voting, stream=True, stream_options={"include_usage": True}))[-1]
    assert streamed["usage"] == vote["usage"] and streamed["drafthouse"]["voting"] == said


def test_one_sample_needs_no_judge(raw: httpx.Client, live: Live) -> None:
    for texts in (answers(5), answers(None), answers(5, None, None)):
        live.runner.reset()
        say(live, texts)
        body(post_chat(raw, voting={"rule": "usc", "samples": len(texts)}))
        assert len(live.runner.requests) == 1


@pytest.mark.parametrize(("unclear", "answer"), [("sc", "6"), ("first", "5")])
def test_a_judge_that_says_nothing(raw: httpx.Client, live: Live, unclear: str, answer: str) -> None:
    say(live, answers(5, 6, 6), judge="I cannot say.")
    said = report(body(post_chat(raw, voting={"rule": "usc", "samples": 3, "params": {"unclear": unclear}})))
    assert (said["answer"], said["fallback"]) == (answer, "usc_parse")


def test_responses_are_shuffled_by_the_seed(raw: httpx.Client, live: Live) -> None:
    say(live, answers(*range(8)), judge="Response 1")
    chosen = [
        [report(body(post_chat(raw, seed=seed, voting={"rule": "usc"})))["answer"] for seed in range(12)] for _ in "ab"
    ]
    assert chosen[0] == chosen[1] and len(set(chosen[0])) > 1


@pytest.mark.parametrize("streamed", [False, True])
def test_more_than_a_judge_can_read(raw: httpx.Client, live: Live, streamed: bool) -> None:
    say(live, lambda index: "word " * 70 + f"#### {index}", judge="Response 1")
    voting = {"rule": "usc", "samples": 12, "guard_repetition": False}
    response = post_chat(raw, voting=voting, max_tokens=200, stream=streamed)
    if streamed:
        assert '"context_length_exceeded"' in response.text
    else:
        refused(response, "voting.samples", code="context_length_exceeded")


# --- prompts with an instruction


def test_stated_confidences_are_weights(raw: httpx.Client, live: Live) -> None:
    say(
        live,
        [
            "#### 4\nConfidence: 40",
            "#### 5\nConfidence: 95",
            "#### 4\nConfidence: 35%",
            "#### 4\nsure",
            "hm\nConfidence: 9",
        ],
    )
    vote = body(post_chat(raw, voting={"rule": "verbalised", "samples": 5, "return_samples": True}))
    said = report(vote)
    (prompt,) = prompts(live, live.runner.requests)
    assert CONFIDENCE in prompt and MESSAGES[0]["content"] in prompt
    assert {one["answer"]: one["weight"] for one in said["clusters"]} == pytest.approx({"4": 0.75, "5": 0.95})
    assert said["answer"] == "5" and said["abstain_rate"] == 2 / 5
    assert [one.get("abstain_reason") for one in records(vote)] == [None, None, None, "no_confidence", "no_answer"]
    assert said["baseline_sc"] == {"answer": "4", "share": 0.75}
    assert vote["usage"]["prompt_tokens"] == len(live.runner.requests[0].prompt_ids)


def test_an_instruction_behind_completions(raw: httpx.Client, live: Live) -> None:
    body(post_completion(raw, prompt=["one", "two"], voting={"rule": "verbalised", "samples": 2}))
    for prompt, text in zip(prompts(live, live.runner.requests), ("one", "two"), strict=True):
        assert prompt.startswith(text) and CONFIDENCE in prompt
    refused(post_completion(raw, prompt=[5, 6, 7], voting={"rule": "verbalised"}), "prompt")
    say_nothing: list[Any] = [{"role": "system", "content": "be brief"}]
    refused(post_chat(raw, messages=say_nothing, voting={"rule": "verbalised"}), "messages")


# --- screened traces


def test_consensus_ends_the_drawing(raw: httpx.Client, live: Live) -> None:
    say(live, [*answers(*[4] * 8), *["z " * 100] * 12])
    params = {"mode": "online", "warmup": 4, "window": 2048}
    voting = {"rule": "deepconf", "samples": 20, "params": params, "return_samples": True}
    vote = body(post_chat(raw, voting=voting, max_tokens=300))
    said = report(vote)
    assert said["used_samples"] == 5 and "consensus" in said["flags"] and said["answer"] == "4"
    assert vote["usage"]["completion_tokens"] < 20 * 2 * length(live, answers(4)[0])
    never = {**voting, "samples": 8, "params": {**params, "consensus_tau": None}}
    said = report(body(post_chat(raw, voting=never)))
    assert said["used_samples"] == 8 and "consensus" not in said["flags"]


def test_nothing_is_screened_where_all_is_warm_up(raw: httpx.Client, live: Live) -> None:
    params = {"mode": "online", "warmup": 5, "window": 2}
    body(post_chat(raw, voting={"rule": "deepconf", "samples": 5, "params": params}))
    assert [request.n for request in live.runner.requests] == [5] and live.runner.requests[0].watch is None


def test_rounds_of_a_client_that_leaves(raw: httpx.Client, live: Live) -> None:
    live.runner.behaviour.step_s = 0.01
    say(live, lambda index: "word " * 60 + f"#### {index}", judge="hm " * 60)
    for voting in (
        {**CHAIN, "samples": 3},
        {"rule": "usc", "samples": 2},
        {"rule": "deepconf", "samples": 4, "params": {"mode": "online", "warmup": 2}},
    ):
        for lines in (1, 5):
            asked = {"model": "drafthouse-tiny", "prompt": "a", "max_tokens": 100, "stream": True, "voting": voting}
            with raw.stream("POST", "/v1/completions", json=asked) as response:
                for _, _line in zip(range(lines), response.iter_lines(), strict=False):
                    pass
            live.wait(lambda: not live.runner.live)


def test_rounds_at_the_same_time(raw: httpx.Client, live: Live) -> None:
    asked = [
        {**CHAIN, "samples": 3, "return_samples": True},
        {"rule": "usc", "samples": 4, "return_samples": True},
        {"rule": "deepconf", "samples": 9, "params": {"mode": "online", "warmup": 3, "window": 2}},
    ]
    alone = [report(body(post_completion(raw, voting=one))) for one in asked]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda one: report(body(post_completion(raw, voting=one))), asked * 2))
    assert together == alone * 2


# --- finding and comparing answers


@pytest.mark.parametrize(
    ("voting", "texts", "clusters"),
    [
        ({"extract": "boxed"}, [r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", r"\boxed{50\%}"], [[0, 1, 2]]),
        ({"extract": "boxed", "equiv": "string"}, [r"\boxed{0.5}", r"\boxed{1/2}"], [[0], [1]]),
        ({"extract": "last_number"}, ["1 or 2", "so 2.0", "no", "1,000", "1000"], [[0, 1], [3, 4]]),
        ({"extract": "mcq"}, ["The answer is (b)", "B", "C"], [[0, 1], [2]]),
        ({"extract": {"regex": "is (\\w+)", "group": 1}}, ["it is a, is b", "is b", "is"], [[0, 1]]),
        ({"extract": {"json_path": "$.x"}}, ['{"x": 1}', '{"x": 1.0}', '{"y": 1}'], [[0, 1]]),
        ({"extract": "whole"}, ["yes.", " yes", "no"], [[0, 1], [2]]),
        ({"extract": {"name": "auto", "allow_last_number": True}}, ["it is 7", "#### 7", "x"], [[0, 1]]),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_answers(raw: httpx.Client, live: Live, voting: dict[str, Any], texts: list[str], clusters: Any) -> None:
    say(live, texts)
    said = report(body(post_chat(raw, max_tokens=60, voting={"samples": len(texts), **voting})))
    assert [one["members"] for one in said["clusters"]] == clusters


HOSTILE = [
    "#### 9**9**9**9",
    r"\boxed{\frac{1}{0}}",
    r"\boxed{" * 40,
    "#### 1e999999999",
    "#### " + "9" * 300,
    r"#### $\left( \left[ x^{x^{x^{x}}}",
    '#### __import__("os").system("exit 1")',
    "#### \u202e\ufdfa\u0000\ud7ff",
]


@pytest.mark.parametrize(
    "extract", ["auto", "boxed", "last_number", "whole", {"regex": "(a*)*b|(.+)+$"}, "code", "mcq"]
)
def test_hostile_answers_cost_nothing(raw: httpx.Client, live: Live, extract: Any) -> None:
    say(live, HOSTILE)
    said = report(body(post_chat(raw, max_tokens=450, voting={"samples": len(HOSTILE), "extract": extract})))
    assert said["used_samples"] == len(HOSTILE)


@pytest.mark.slow
def test_formulas(raw: httpx.Client, live: Live) -> None:
    say(live, [rf"\boxed{{{one}}}" for one in ("x+1", "1+x", "x+2", "1 + x")])
    said = report(body(post_chat(raw, voting={"samples": 4, "equiv": "math_verify"})))
    assert [(one["members"], one["rung"]) for one in said["clusters"]] == [([0, 1, 3], 3), ([2], 0)]
    say(live, HOSTILE)
    stop = {"rule": "esc", "window": 3}
    said = report(body(post_chat(raw, max_tokens=450, voting={"samples": 8, "equiv": "math_verify", "stop": stop})))
    assert said["used_samples"] == 8
    assert raw.get("/health").status_code == 200
