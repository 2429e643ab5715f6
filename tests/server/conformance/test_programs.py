"""Programs through HTTP, with the embedded model: what is true of all of them, and what each is for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from samplers.programs.contract import PROGRAMS
from server.config import ServeConfig
from server.launch import build_state
from tests.server.conformance.answers import alike, assembled, body, held, ids_of, text_of, wait_released, whole
from tests.server.conformance.helpers import (
    MODEL,
    PROMPT,
    chat,
    data_lines,
    post_chat,
    post_completion,
    refused,
    stream,
)
from tests.server.live import Live, start
from tests.vllm.engine_process import INSTALLED, serve

pytestmark = pytest.mark.slow

DOCUMENT = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
LONG_PROMPT = (
    "def read_lines(path):\n    with open(path) as file:\n        return [line.strip() for line in file]\n\n" * 3
)
PLAIN = [
    {"name": "priority"},
    {"name": "beam"},
    {"name": "conditional_beam", "event": {"min_len": 3, "no_repeat": {"n": 3}}},
    {"name": "eager", "theta": 1.0},
    {"name": "tree", "budget": 6},
    {"name": "superposed"},
]
VARIANTS = [
    *PLAIN,
    {"name": "priority", "key": "joint", "dedupe": "text"},
    {"name": "priority", "parallel": 3},
    {"name": "beam", "beam_width": 6, "groups": 3, "stop": "first"},
    {"name": "eager", "theta": -1.0, "fork_mode": "split"},
    {"name": "tree", "budget": 6, "select": "puct", "rollout": "sample", "parallel": 2},
    {"name": "superposed", "reset_every": 4, "superposed_temperature": 1.0},
]
EVERY = pytest.mark.parametrize("item", PLAIN, ids=lambda item: item["name"])
VARIED = pytest.mark.parametrize("item", VARIANTS, ids=lambda item: "-".join(map(str, item.values()))[:40])
POSTS = pytest.mark.parametrize("post", [post_chat, post_completion])


PRESETS = {
    "distinct": {"sampler": {"name": "priority", "branch_width": 8}, "n": 4},
    "wide": {"use_beam_search": True, "n": 3, "temperature": 0},
}
SERVERS = {
    "embedded": lambda: start(build_state(ServeConfig(max_model_len=512, presets=PRESETS, threads=1))),
    "vllm": lambda: serve(presets=PRESETS),
}


@pytest.fixture(scope="module", params=["embedded", *(["vllm"] if INSTALLED else [])])
def shared_server(request: pytest.FixtureRequest) -> Iterator[Live]:
    live = SERVERS[request.param]()
    yield live
    live.stop()


@pytest.fixture(autouse=True)
def nothing_is_left(raw: httpx.Client) -> Iterator[None]:
    """Whatever a test has done, the server is healthy and holds nothing."""
    yield
    wait_released(raw)
    assert raw.get("/health").status_code == 200


def test_every_program_is_tried_here() -> None:
    assert {item["name"] for item in PLAIN} == {program.name for program in PROGRAMS}


# --- of all programs


@POSTS
@VARIED
def test_a_stream_adds_up_to_the_whole_answer(raw: httpx.Client, live: Live, post: Any, item: dict[str, Any]) -> None:
    fields = {"sampler": item, "n": 3, "return_token_ids": True, "max_tokens": 20}
    fields |= {"logprobs": True, "top_logprobs": 2} if post is post_chat else {"logprobs": 2}
    answer = body(post(raw, **fields))
    said = whole(answer)
    assert alike(said, assembled(data_lines(post(raw, **fields, stream=True, stream_options={"include_usage": True}))))
    choices = said["choices"]
    assert [one["index"] for one in answer["choices"]] == list(range(len(choices))) and 1 <= len(choices) <= 3
    assert said["usage"]["completion_tokens"] == sum(len(one["token_ids"]) for one in choices)
    assert said["drafthouse"]["program"]["name"] == item["name"]
    used = said["drafthouse"]["sampler"][-1]
    assert used | {name: value for name, value in item.items() if name != "event"} == used
    for one in choices:
        ended = one["token_ids"][-1] in live.state.models[0].eos_token_ids
        assert one["finish_reason"] == ("stop" if ended else "length") and (ended or len(one["token_ids"]) == 20)
        assert "".join(token for token, _, _ in one["listed"]).startswith(one["text"])
        logprobs = [logprob for _, logprob, _ in one["listed"]]
        if len(logprobs) == len(one["token_ids"]):
            assert sum(logprobs) == pytest.approx(one["cumulative_logprob"], abs=1e-3)
        else:  # the token that ends the text is not listed
            assert len(logprobs) == len(one["token_ids"]) - 1 and sum(logprobs) >= one["cumulative_logprob"] - 1e-3
        if "logprob" in one["drafthouse"]:
            assert one["drafthouse"]["logprob"] == pytest.approx(one["cumulative_logprob"], abs=1e-3)
        for _, logprob, top in one["listed"]:
            assert len(top) in ((2,) if post is post_chat else (2, 3))  # completions add the token itself
            assert top[:2] == sorted(top[:2], reverse=True) and logprob <= top[0] + 1e-4


@VARIED
def test_a_seed_repeats_whatever_else_runs(raw: httpx.Client, item: dict[str, Any]) -> None:
    asked = {"sampler": item, "n": 3, "max_tokens": 24, "return_token_ids": True}
    alone = body(post_completion(raw, **asked))
    plain = {"n": 2, "max_tokens": 40, "ignore_eos": True}
    with ThreadPoolExecutor(8) as pool:
        beside = [pool.submit(post_completion, raw, **plain, seed=seed) for seed in range(4)]
        again = [pool.submit(post_completion, raw, **asked) for _ in range(2)]
        answers = [body(one.result()) for one in again]
        assert all(one.result().status_code == 200 for one in beside)
    for answer in answers:
        assert ids_of(answer) == ids_of(alone)
        assert alike(answer["drafthouse"], alone["drafthouse"])
        assert all(map(alike, answer["choices"], alone["choices"]))


@EVERY
@POSTS
def test_what_was_reported_repeats_the_answer(raw: httpx.Client, post: Any, item: dict[str, Any]) -> None:
    first = body(post(raw, sampler=[item, {"name": "logit_bias", "logit_bias": {"8": -2}}], seed=None, max_tokens=8))
    used = first["drafthouse"]
    again = body(post(raw, sampler=used["sampler"], seed=used["seed"], n=len(first["choices"]), max_tokens=8))
    assert [text_of(one) for one in again["choices"]] == [text_of(one) for one in first["choices"]]
    assert again["drafthouse"]["sampler"] == used["sampler"]


@EVERY
@POSTS
def test_usual_numbers_of_choices(raw: httpx.Client, post: Any, item: dict[str, Any]) -> None:
    asked = item | ({"theta": -1} if item["name"] == "eager" else {})
    answer = body(post(raw, sampler=asked, max_tokens=6))
    assert len(answer["choices"]) == PROGRAMS.get(item["name"]).default_n


@POSTS
@pytest.mark.parametrize("name", ["superposed"])
def test_a_usual_number_of_tokens(raw: httpx.Client, post: Any, name: str) -> None:
    answer = body(post(raw, sampler=name, max_tokens=None, ignore_eos=True, return_token_ids=True))
    assert {len(ids) for ids in ids_of(answer)} == {10}


@VARIED
def test_stop_strings(raw: httpx.Client, live: Live, item: dict[str, Any]) -> None:
    def checked(stops: list[str], include: bool = False, min_tokens: int = 0) -> list[str]:
        fields = {"sampler": item, "n": 3, "stop": stops, "return_token_ids": True, "max_tokens": 24}
        fields |= {"include_stop_str_in_output": include, "min_tokens": min_tokens}
        streamed = assembled_texts(data_lines(post_chat(raw, **fields, stream=True)))
        choices = body(post_chat(raw, **fields))["choices"]
        assert [text_of(one) for one in choices] == streamed
        for one in choices:
            text, ids = text_of(one), one["token_ids"]
            before = [live.codec.decode(ids[:end]) for end in range(min_tokens + 1, len(ids))]
            if min_tokens == 0:
                assert not any(stop in early for early in before for stop in stops), (text, stops)
            if one["stop_reason"] is None:
                assert not any(stop in text for stop in stops) or min_tokens
                assert one["finish_reason"] == "length" or ids[-1] in live.state.models[0].eos_token_ids
            else:
                assert one["finish_reason"] == "stop" and one["stop_reason"] in stops and len(ids) > min_tokens
                assert text.endswith(one["stop_reason"]) if include else min_tokens or one["stop_reason"] not in text
            assert one["drafthouse"], "the end says what the program knows"
        return [one["stop_reason"] for one in choices]

    assert checked(["\n"]) == checked(["\n"], include=True)
    assert "\n" in checked(["\n"])
    assert set(checked([" = ", "=", "4 +", "\n"])) & {"=", "4 +", " = "}
    checked(["\n", "4 = 9\n"], min_tokens=10)


def assembled_texts(events: list[dict[str, Any]]) -> list[str]:
    texts: dict[int, str] = {}
    for event in events:
        for part in event["choices"]:
            texts[part["index"]] = texts.get(part["index"], "") + part["delta"].get("content", "")
    return [text for _, text in sorted(texts.items())]


@EVERY
def test_what_ends_a_text(raw: httpx.Client, live: Live, item: dict[str, Any]) -> None:
    fields = {"sampler": item, "n": 3, "return_token_ids": True, "max_tokens": 24}
    free = ids_of(body(post_chat(raw, **fields)))
    eos = min(live.state.models[0].eos_token_ids)
    stop_id = free[0][2]
    for choice in body(post_chat(raw, **fields, stop_token_ids=[stop_id]))["choices"]:
        ids = choice["token_ids"]
        assert stop_id not in ids[:-1]
        assert (choice["stop_reason"] == stop_id) == (ids[-1] == stop_id)
        assert choice["finish_reason"] == ("stop" if ids[-1] in (stop_id, eos) else "length")
    late = {"stop_token_ids": [stop_id], "min_tokens": 8}
    for ids in ids_of(body(post_chat(raw, **fields, **late))):
        assert not {stop_id, eos} & set(ids[:8])
    for choice in body(post_chat(raw, **fields, ignore_eos=True))["choices"]:
        assert len(choice["token_ids"]) == 24 and choice["finish_reason"] == "length"
    if item["name"] != "conditional_beam":  # its event wants more
        assert [len(ids) for ids in ids_of(body(post_chat(raw, **fields | {"max_tokens": 1, "n": 1})))] == [1]


@VARIED
def test_prompts_of_one_call_are_answered_as_if_alone(raw: httpx.Client, item: dict[str, Any]) -> None:
    prompts = [PROMPT, "class Reader:\n", "import os\nimport "]
    fields = {"sampler": item, "n": 2, "max_tokens": 12, "return_token_ids": True}
    together = body(post_completion(raw, prompt=prompts, **fields))
    streamed = data_lines(post_completion(raw, prompt=prompts, **fields, stream=True))
    ends = {part["index"] for event in streamed for part in event["choices"] if part["finish_reason"]}
    assert ends == {choice["index"] for choice in together["choices"]}
    assert alike(streamed[-1]["drafthouse"], together["drafthouse"])
    for number, prompt in enumerate(prompts):
        alone = body(post_completion(raw, prompt=prompt, **fields))
        mine = {one["index"] - 2 * number: one for one in together["choices"] if one["index"] // 2 == number}
        assert {one["index"]: one["token_ids"] for one in alone["choices"]} == {
            index: one["token_ids"] for index, one in mine.items()
        }
        assert alike(together["drafthouse"]["program"][number], alone["drafthouse"]["program"])


@EVERY
def test_a_cached_prompt_changes_nothing(raw: httpx.Client, item: dict[str, Any]) -> None:
    fields = {"sampler": item, "n": 3, "prompt": LONG_PROMPT, "cache_salt": str(item), "return_token_ids": True}
    first, second = (body(post_completion(raw, **fields)) for _ in range(2))
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in (first, second)]
    assert cached[0] == 0 < cached[1]
    assert ids_of(first) == ids_of(second)


@EVERY
def test_prompts_are_scored_as_ever(raw: httpx.Client, item: dict[str, Any]) -> None:
    fields = {"prompt_logprobs": 1, "echo": True, "logprobs": 1, "max_tokens": 4, "n": 2}
    plain, answer = body(post_completion(raw, **fields)), body(post_completion(raw, **fields, sampler=item))
    for choice in answer["choices"]:
        assert alike(choice["prompt_logprobs"], plain["choices"][0]["prompt_logprobs"])
        assert choice["text"].startswith(PROMPT)
        listed = choice["logprobs"]
        assert "".join(listed["tokens"]) == choice["text"] and listed["token_logprobs"][0] is None
        count = answer["usage"]["prompt_tokens"]
        assert alike(listed["token_logprobs"][:count], plain["choices"][0]["logprobs"]["token_logprobs"][:count])


@EVERY
def test_processed_and_chosen_logprobs(raw: httpx.Client, item: dict[str, Any]) -> None:
    fields = {"sampler": [item, {"name": "logit_bias", "logit_bias": {"8": 5}}], "logprobs": 1, "max_tokens": 6}
    raws = body(post_completion(raw, **fields, logprob_token_ids=[8, 9]))["choices"][0]["logprobs"]
    shaped = body(post_completion(raw, **fields, logprobs_mode="processed"))["choices"][0]["logprobs"]
    assert raws["tokens"] == shaped["tokens"]
    for token, plain, after in zip(raws["tokens"], raws["token_logprobs"], shaped["token_logprobs"], strict=True):
        assert (after > plain) == (token == "#")  # temperature 0.6 of eager aside
    assert all("#" in top for top in raws["top_logprobs"])


@EVERY
def test_clients_that_leave(raw: httpx.Client, live: Live, item: dict[str, Any]) -> None:
    tokens = 64 if item["name"] == "superposed" else 300
    fields = {"model": MODEL, "prompt": LONG_PROMPT, "sampler": item, "n": 3, "max_tokens": tokens, "ignore_eos": True}
    streams = item["name"] in ("priority", "eager")  # choices are final as far as they go
    for streamed in (True, False):
        request = httpx.Request("POST", f"{live.url}/v1/completions", json=fields | {"stream": streamed})
        with httpx.Client(timeout=httpx.Timeout(10, read=10 if streams and streamed else 0.05)) as leaving:
            if streams and streamed:
                response = leaving.send(request, stream=True)
                lines = response.iter_lines()  # closes the response when it is forgotten
                assert next(lines).startswith("data: ")
                assert held(raw)["requests_running"] == 1
                response.close()
            else:
                with pytest.raises(httpx.ReadTimeout):
                    leaving.send(request)
        wait_released(raw)


def repeats(texts: list[list[int]]) -> int:
    return sum(len(ids) - len(set(ids)) for ids in texts)


@POSTS
@EVERY
def test_chains(raw: httpx.Client, post: Any, item: dict[str, Any]) -> None:
    def asked(**stages: Any) -> list[list[int]]:
        answer = body(post(raw, sampler=item, n=3, max_tokens=16, return_token_ids=True, **stages))
        assert set(stages) & {field for used in answer["drafthouse"]["sampler"] for field in used}
        return ids_of(answer)

    free = ids_of(body(post(raw, sampler=item, n=3, max_tokens=16, return_token_ids=True)))
    used = {token for ids in free for token in ids}
    banned = free[0][0]
    assert not any(banned in ids for ids in asked(logit_bias={str(banned): -100}))
    others = sorted(set(range(200, 260)) - used)
    assert all(set(ids) <= set(others) for ids in asked(allowed_token_ids=others))
    if item["name"] == "superposed":
        return
    for ids in asked(no_repeat_ngram_size=2):
        pairs = list(pairwise(ids))
        assert len(set(pairs)) == len(pairs)
    assert repeats(asked(frequency_penalty=2.0)) < repeats(free)


def test_presets(raw: httpx.Client) -> None:
    answer = body(post_chat(raw, model=f"{MODEL}@distinct"))
    item = {"name": "priority", "branch_width": 8}
    said = body(post_chat(raw, sampler=item, n=4))
    assert [text_of(one) for one in answer["choices"]] == [text_of(one) for one in said["choices"]]
    assert len(answer["choices"]) == 4 and answer["model"] == f"{MODEL}@distinct"
    assert len(body(post_chat(raw, model=f"{MODEL}@distinct", n=2))["choices"]) == 2
    other = body(post_chat(raw, model=f"{MODEL}@distinct", sampler={"name": "beam", "beam_width": 4}))
    assert other["drafthouse"]["program"]["name"] == "beam"
    plain = body(post_chat(raw, model=f"{MODEL}@distinct", sampler="iid"))
    assert "program" not in plain["drafthouse"] and len(plain["choices"]) == 4
    wide = body(post_chat(raw, model=f"{MODEL}@wide"))
    assert [text_of(one) for one in wide["choices"]] == [
        text_of(one) for one in body(post_chat(raw, sampler={"name": "beam", "beam_width": 3}, n=3))["choices"]
    ]


def test_the_official_client(client: openai.OpenAI) -> None:
    answer = chat(client, sampler="priority", n=3)
    chunks = stream(client, sampler="priority", n=3)
    for choice in answer.choices:
        parts = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert choice.drafthouse["pop_index"] == choice.index  # type: ignore[attr-defined]
    xargs = chat(client, vllm_xargs={"sampler": '{"name": "priority"}'}, n=3)
    assert [one.message for one in xargs.choices] == [one.message for one in answer.choices]


def test_the_example_of_the_documents(raw: httpx.Client) -> None:
    section = DOCUMENT.split("## Programs")[1]
    request = json.loads(section.split("-d '")[1].split("'")[0])
    shown = json.loads(section.split("```json")[1].split("```")[0])
    answer = body(raw.post("/v1/completions", json=request))
    assert len(answer["choices"]) == request["n"] and alike(answer["choices"][shown["index"]], shown)


# --- of one program each


def test_beams_of_other_servers(raw: httpx.Client) -> None:
    for post in (post_chat, post_completion):
        for penalty in (None, 0.0, 2.0):
            item = {"name": "beam", "beam_width": 3} | ({} if penalty is None else {"length_penalty": penalty})
            one = body(post(raw, use_beam_search=True, n=3, length_penalty=penalty, temperature=0))
            other = body(post(raw, sampler=item, n=3))
            assert [text_of(choice) for choice in one["choices"]] == [text_of(choice) for choice in other["choices"]]
            assert one["drafthouse"]["sampler"] == other["drafthouse"]["sampler"]
            scores = [choice["drafthouse"]["beam_score"] for choice in one["choices"]]
            assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("item", [{"name": "beam", "beam_width": 1, "stop": "first"}, {"name": "superposed"}], ids=str)
def test_one_beam_is_greedy(raw: httpx.Client, item: dict[str, Any]) -> None:
    greedy = body(post_chat(raw, temperature=0, return_token_ids=True))
    assert ids_of(body(post_chat(raw, sampler=item, n=1, return_token_ids=True))) == ids_of(greedy)


@pytest.mark.parametrize("key", ["local", "joint"])
def test_priority_is_a_prefix_of_itself(raw: httpx.Client, key: str) -> None:
    item = {"name": "priority", "key": key}
    lists = {
        n: ids_of(body(post_chat(raw, sampler=item, n=n, seed=n, return_token_ids=True))) for n in (1, 2, 5, 12, 30)
    }
    assert all(ids == lists[30][:n] for n, ids in lists.items())
    assert len({tuple(ids) for ids in lists[30]}) == 30
    assert lists[1] == ids_of(body(post_chat(raw, temperature=0, return_token_ids=True)))


def test_priority_keeps_to_a_regex(raw: httpx.Client) -> None:
    for regex in (r"[0-9]{1,3} apples", r"(yes|no|maybe)", r"Tom has [0-9]+ (apples|pears)\.", r"#+\n"):
        for more in ({}, {"dedupe": "text"}, {"regex_renormalise": True, "key": "joint"}, {"parallel": 4}):
            item = {"name": "priority", "regex": regex, **more}
            answer = body(post_chat(raw, sampler=item, n=12, return_token_ids=True))
            texts = [text_of(one) for one in answer["choices"]]
            for one, text in zip(answer["choices"], texts, strict=True):
                whole = one["finish_reason"] == "stop"
                assert bool(re.fullmatch(regex, text)) or not whole
                assert one["drafthouse"].get("incomplete", False) is not whole
            assert len({tuple(ids) for ids in ids_of(answer)}) == len(texts)
            if "dedupe" in more:
                assert len(set(texts)) == len(texts)


def test_fewer_choices_where_there_are_no_more(raw: httpx.Client) -> None:
    item = {"name": "priority", "regex": "(yes|no|maybe)", "dedupe": "text"}
    fields = {"sampler": item, "n": 12, "return_token_ids": True, "max_tokens": 8}
    answer = body(post_completion(raw, **fields, logprobs=1))
    assert {one["text"] for one in answer["choices"]} == {"yes", "no", "maybe"} and len(answer["choices"]) == 3
    assert answer["drafthouse"]["program"]["exhausted"] is True
    streamed = assembled(
        data_lines(post_completion(raw, **fields, logprobs=1, stream=True, stream_options={"include_usage": True}))
    )
    assert alike(streamed, whole(answer))
    only = body(post_completion(raw, sampler="priority", min_p=1.0, n=5))
    assert len(only["choices"]) == 1 and only["drafthouse"]["program"]["exhausted"] is True


def test_eager_without_forks_is_a_sample(raw: httpx.Client) -> None:
    plain = body(post_chat(raw, temperature=0.6, return_token_ids=True))
    alone = body(post_chat(raw, sampler={"name": "eager", "theta": 1e6}, n=8, return_token_ids=True))
    assert ids_of(alone) == ids_of(plain)
    assert alone["drafthouse"]["program"]["unused_budget"] == 7
    doubled = body(post_chat(raw, sampler={"name": "eager", "theta": -1}, n=8, max_tokens=6))
    weights = [one["drafthouse"]["tree_weight"] for one in doubled["choices"]]
    assert len(weights) == 8 and sum(weights) == pytest.approx(1, abs=1e-6)


def test_tree_returns_its_best_texts(raw: httpx.Client) -> None:
    few, many = (body(post_chat(raw, sampler={"name": "tree", "budget": b}, n=2)) for b in (2, 12))
    values = [[one["drafthouse"]["value"] for one in answer["choices"]] for answer in (few, many)]
    assert all(one == sorted(one, reverse=True) for one in values) and values[1][0] >= values[0][0] - 1e-6
    assert many["drafthouse"]["program"]["rollouts"] == 12


def test_conditional_beam_keeps_to_its_event(raw: httpx.Client) -> None:
    event = {"min_len": 6, "max_len": 12, "finished": True, "no_repeat": {"n": 2}, "regex_not": r"\+"}
    item = {"name": "conditional_beam", "beam_width": 8, "event": event}
    answer = body(post_chat(raw, sampler=item, n=4, return_token_ids=True))
    for one in answer["choices"]:
        ids = one["token_ids"][:-1]
        assert one["finish_reason"] == "stop" and 6 <= len(ids) <= 12 and "+" not in text_of(one)
        assert len(set(pairwise(ids))) == len(ids) - 1 and one["drafthouse"]["event"] is True
    never = {"name": "conditional_beam", "event": {"regex_not": ".*"}}
    refused(post_chat(raw, sampler=never), code="event_not_reached")
    refused(post_chat(raw, sampler=never, stream=True), code="event_not_reached")
    relaxed = body(post_chat(raw, sampler=never | {"relax": True}))
    assert relaxed["choices"][0]["drafthouse"]["event"] is False


# --- refused


NO_SUCH = {"name": "conditional_beam", "event": {"min_len": 3, "max_len": 2}}


@POSTS
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"sampler": "priority", "temperature": 0.5}, "temperature"),
        ({"sampler": "priority", "temperature": 0}, "temperature"),
        ({"sampler": "beam", "temperature": 2}, "temperature"),
        ({"sampler": "superposed", "temperature": 0.9}, "temperature"),
        ({"sampler": "tree", "temperature": 0.9}, "temperature"),
        ({"sampler": "beam", "draw": "gumbel"}, "draw"),
        ({"sampler": ["priority", "gumbel"]}, "draw"),
        ({"sampler": "eager", "draw": "arithmetic"}, "draw"),
        ({"sampler": ["eager", "basis_aware"]}, "draw"),
        ({"sampler": ["eager", {"name": "mirostat", "mirostat_tau": 5}]}, "mirostat_tau"),
        ({"sampler": "eager", "adaptive_p": 0.5}, "adaptive_p"),
        ({"sampler": "beam", "reuse_cap": 0.5}, "reuse_cap"),
        ({"sampler": "priority", "return_sampler_trace": True}, "return_sampler_trace"),
        ({"sampler": "priority", "prompt_boundary": "heal"}, "prompt_boundary"),
        ({"sampler": "priority", "prompt_boundary": "exact"}, "prompt_boundary"),
        ({"sampler": {"name": "priority", "branchwidth": 4}}, "sampler.branchwidth"),
        ({"sampler": [{"name": "top_k", "top_k": 4}, {"name": "beam", "width": 4}]}, "sampler[1].width"),
        ({"sampler": {"name": "priority", "branch_width": 1}}, "sampler.branch_width"),
        ({"sampler": {"name": "priority", "branch_width": "16"}}, "sampler.branch_width"),
        ({"sampler": {"name": "priority", "branch_width": 2.5}}, "sampler.branch_width"),
        ({"sampler": {"name": "priority", "branch_width": True}}, "sampler.branch_width"),
        ({"sampler": {"name": "priority", "key": "global"}}, "sampler.key"),
        ({"sampler": {"name": "priority", "regex": 3}}, "sampler.regex"),
        ({"sampler": {"name": "priority", "regex": "("}}, "sampler.regex"),
        ({"sampler": {"name": "priority", "regex": "(?=a)b"}}, "sampler.regex"),
        ({"sampler": {"name": "priority", "regex_renormalise": True}}, "sampler.regex_renormalise"),
        ({"sampler": {"name": "beam", "beam_width": 2}, "n": 3}, "sampler.beam_width"),
        ({"sampler": ["top_k", {"name": "beam", "beam_width": 2}], "n": 3}, "sampler[1].beam_width"),
        ({"sampler": {"name": "beam", "groups": 3}}, "sampler.groups"),
        ({"sampler": {"name": "conditional_beam"}}, "sampler.event"),
        ({"sampler": {"name": "conditional_beam", "event": {}}}, "sampler.event"),
        ({"sampler": {"name": "conditional_beam", "event": {"minlen": 3}}}, "sampler.event.minlen"),
        ({"sampler": NO_SUCH}, "sampler.event"),
        ({"sampler": {"name": "conditional_beam", "event": {"min_len": 1000}}}, "sampler.event"),
        ({"sampler": {"name": "tree", "value": "nonsense"}}, "sampler.value"),
        ({"sampler": {"name": "tree", "budget": 2}, "n": 3}, "sampler.budget"),
        ({"sampler": {"name": "eager", "fork_mode": "split"}, "temperature": 0}, "sampler.fork_mode"),
        ({"sampler": "superposed", "n": 11}, "n"),
        ({"sampler": "superposed", "max_tokens": 65}, "max_tokens"),
        ({"sampler": "superposed", "frequency_penalty": 1}, "sampler"),
        ({"sampler": {"name": "superposed", "alpha": 0.5}}, "sampler.alpha"),
        ({"sampler": {"name": "superposed", "weights": [0.5]}}, "sampler.weights"),
        ({"sampler": {"name": "superposed", "m": 0}}, "sampler.m"),
        ({"sampler": ["priority", "beam"]}, "sampler[1].name"),
        ({"sampler": "eager", "use_beam_search": True}, "use_beam_search"),
        ({"sampler": "priority", "n": 129}, "n"),
        ({"sampler": "priority", "n": 0}, "n"),
        ({"use_beam_search": True, "temperature": 0.7}, "temperature"),
        ({"use_beam_search": "yes"}, "use_beam_search"),
        ({"use_beam_search": True, "length_penalty": 6}, "length_penalty"),
        ({"use_beam_search": True, "n": 65}, "n"),
        ({"sampler": {"name": "priority"}, "min_tokens": 30}, "min_tokens"),
    ],
)
def test_refused(raw: httpx.Client, post: Any, fields: dict[str, Any], param: str) -> None:
    refused(post(raw, **fields), param)


def test_parameters_are_no_fields_of_a_request(raw: httpx.Client) -> None:
    answer = body(post_chat(raw, sampler="priority", key="joint", branch_width="x"))
    assert answer["drafthouse"]["sampler"][0]["key"] == "local"


def test_refused_on_completions(raw: httpx.Client) -> None:
    refused(post_completion(raw, sampler="priority", best_of=3), "best_of")
    refused(post_completion(raw, sampler="priority", max_tokens=0, echo=True), "max_tokens")
    refused(post_completion(raw, prompt=["a"] * 200, sampler="eager"), "n")
    refused(post_completion(raw, prompt=["a"] * 33, sampler="priority", n=128), "prompt")


def test_an_order_may_be_given(raw: httpx.Client) -> None:
    chain = [{"name": "min_p", "min_p": 0.05}, "priority", {"name": "logit_bias", "logit_bias": {"9": 1}}]
    fixed, given = (body(post_chat(raw, sampler=chain, sampler_order=order)) for order in ("fixed", "given"))
    assert [used["name"] for used in fixed["drafthouse"]["sampler"]] == ["logit_bias", "min_p", "priority"]
    assert [used["name"] for used in given["drafthouse"]["sampler"]] == ["min_p", "logit_bias", "priority"]


def test_impossible_requests_are_said_to_be_so(raw: httpx.Client) -> None:
    item = {"name": "priority", "regex": "[a-z]+"}
    for streamed in (False, True):
        fields = {"sampler": item, "allowed_token_ids": [8], "stream": streamed, "n": 2}
        refused(post_chat(raw, **fields), code="constraint_unsatisfiable")
        refused(post_completion(raw, **fields), code="constraint_unsatisfiable")
        refused(post_completion(raw, **fields, prompt=["a", "b"]), code="constraint_unsatisfiable")


def test_a_prompt_without_an_answer_beside_one_that_has_some(raw: httpx.Client) -> None:
    fields = {"sampler": {"name": "priority", "regex": "#"}, "n": 2, "ignore_eos": True, "allowed_token_ids": [8]}
    fields |= {"prompt": ["#", "x ="], "no_repeat_ngram_size": 1, "ngram_scope": "all"}  # the first has its # already
    answer = body(post_completion(raw, **fields))
    failed, good = answer["choices"][0], answer["choices"][-1]
    assert good["text"] == "#" and good["index"] == 2
    assert failed["failure"]["code"] == "constraint_unsatisfiable"
    events = data_lines(post_completion(raw, **fields, stream=True))
    ends = {part["index"]: part for event in events for part in event["choices"] if part["finish_reason"]}
    assert ends[0]["failure"] == failed["failure"] and ends[2]["finish_reason"] == good["finish_reason"]
    assert events[-1]["drafthouse"]["program"] == answer["drafthouse"]["program"]
