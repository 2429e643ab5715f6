"""`spec_decode` through HTTP on the embedded pair: the same tokens as plain decoding, and reports that add up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.config import ServeConfig
from server.launch import build_state
from server.text.codec import TextCodec
from tests.server.conformance.helpers import MODEL, data_lines, post_chat, post_completion, refused
from tests.server.live import TINY, Live, start
from tests.server.test_drafting import ranking_file
from tests.server.test_speculation import said, samples

pytestmark = pytest.mark.slow
DRAFT = "drafthouse-tiny-draft"
PRESETS = {"drafted": {"spec_decode": {"draft": "draft_model"}}, "plain": {"spec_decode": False}}
REPEATED = "def add(a, b):\n    return a + b\n\n\ndef add_two(a, b):\n    return a + b\n\n\ndef add_three(a, b):\n"


@pytest.fixture(scope="module")
def pair() -> Iterator[Live]:
    live = start(build_state(ServeConfig(max_model_len=512, draft_model=DRAFT, presets=PRESETS, threads=1)))
    yield live
    live.stop()


@pytest.fixture
def raw(pair: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=pair.url, timeout=120) as client:
        yield client


# lengths are said: those that pay depend on the clock
WAYS: list[Any] = [
    "auto",
    {"draft": "prompt_lookup", "num_tokens": 5},
    {"draft": "suffix", "num_tokens": 4, "num_drafts": 2, "tree": {"max_nodes": 8}},
    {"draft": "draft_model", "num_tokens": 4},
    {"draft": "draft_model", "num_tokens": 3, "verifier": "match", "draft_noise": "independent"},
]
DRAWN: list[Any] = [
    {"draft": "draft_model", "num_tokens": 4, "verifier": "token"},
    {"draft": "draft_model", "num_tokens": 3, "num_drafts": 3},
    {"draft": "draft_model", "num_tokens": 3, "num_drafts": 2, "verifier": "kseq"},
    {"draft": "draft_model", "num_tokens": 1, "num_drafts": 2, "verifier": "hu"},
    {"draft": "draft_model", "num_tokens": 2, "num_drafts": 2, "verifier": "rrs", "sibling_law": "swor"},
]
REQUESTS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "stop": ["return"]},
    {"temperature": 0, "max_tokens": 5, "logprobs": 3},
    {"n": 3, "min_p": 0.05, "frequency_penalty": 0.5},
    {"n": 3, "stop": [" a", "\n\n"], "draw": "gumbel"},
    {"min_tokens": 20, "logit_bias": {"10": 2}, "n": 2},
    {"best_of": 3, "n": 2},
    {"prompt_boundary": "exact", "n": 3},
    {"sampler": "arithmetic", "n": 4, "max_tokens": 6},  # each token of a code multiplies what rounding has changed
    {"stop_token_ids": [10], "typical_p": 0.9},
]


def shown(response: httpx.Response) -> list[Any]:
    """What may not depend on how tokens were guessed. Sums of log-probabilities are compared to few digits."""
    assert response.status_code == 200, response.text
    choices = response.json()["choices"]
    rows = [(c["text"], c["token_ids"], c["finish_reason"], c["stop_reason"]) for c in choices]
    sums = [round(c["cumulative_logprob"], 2) for c in choices]
    tops = [[list(top) for top in c["logprobs"]["top_logprobs"]] for c in choices if c["logprobs"]]
    return [rows, sums, tops]


@pytest.mark.parametrize("request_fields", REQUESTS, ids=lambda fields: "-".join(fields))
def test_seeded_tokens_are_those_of_plain_decoding(raw: httpx.Client, request_fields: dict[str, Any]) -> None:
    fields = {"prompt": REPEATED, "max_tokens": 40, "return_token_ids": True} | request_fields
    plain = shown(post_completion(raw, spec_decode=False, **fields))
    for way in WAYS:
        assert shown(post_completion(raw, spec_decode=way, **fields)) == plain, way


@pytest.mark.parametrize("way", [*WAYS, *DRAWN], ids=str)
def test_reports_add_up(raw: httpx.Client, way: Any) -> None:
    asked = way if way == "auto" else way | {"stats": "detailed"}
    for fields in ({}, {"temperature": 0}):
        response = post_completion(raw, prompt=REPEATED, max_tokens=40, ignore_eos=True, spec_decode=asked, **fields)
        found = said(response)
        assert found["steps"] * found["mean_emitted"] == pytest.approx(40, abs=1.01)  # the prompt's step draws plainly
        assert 0 <= found["accepted"] <= found["drafted"]
        assert found["seed_stable"] == (found["verifier"] == "match") and found["lossy"] is False
        if way != "auto":
            assert found["drafted"] > 0
            assert sum(found["draft_lengths"].values()) == found["steps"]
        if way == WAYS[3]:
            assert found["accepted"] > 5


@pytest.mark.parametrize("way", DRAWN, ids=str)
def test_greedy_tokens_whatever_the_rule(raw: httpx.Client, way: Any) -> None:
    fields = {"prompt": REPEATED, "max_tokens": 40, "return_token_ids": True, "temperature": 0}
    assert shown(post_completion(raw, spec_decode=way, **fields)) == shown(
        post_completion(raw, spec_decode=False, **fields)
    )


def test_streams_are_the_whole_answer(raw: httpx.Client) -> None:
    fields = {"n": 2, "spec_decode": WAYS[3], "max_tokens": 40, "stop": ["####"]}
    whole = post_chat(raw, **fields).json()
    chunks = data_lines(post_chat(raw, stream=True, **fields))
    for choice in whole["choices"]:
        texts = [
            c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]
        ]
        assert "".join(texts) == choice["message"]["content"]
    found = chunks[-1]["drafthouse"]["spec_decode"]
    assert found.keys() == whole["drafthouse"]["spec_decode"].keys() and found["accepted"] > 0


def test_a_choice_cut_at_a_stop_string_is_counted(raw: httpx.Client) -> None:
    answer = post_completion(raw, prompt=REPEATED, temperature=0, stop=["return"], max_tokens=60, spec_decode=WAYS[3])
    assert answer.json()["choices"][0]["stop_reason"] == "return"
    assert said(answer)["steps"] > 0


@pytest.mark.parametrize(
    "voting",
    [
        {"samples": 6},
        {"samples": 6, "at_once": 2},
        {"samples": 12, "stop": "beta"},
        {"samples": 8, "rule": "deepconf", "params": {"mode": "online", "warmup": 4}},
        {"samples": 5, "rule": "usc"},
    ],
    ids=str,
)
def test_votes(raw: httpx.Client, voting: dict[str, Any]) -> None:
    answers = [post_chat(raw, voting=voting, max_tokens=48, spec_decode=way).json() for way in (False, WAYS[3])]
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert texts[0] == texts[1]
    report = answers[1]["drafthouse"]["spec_decode"]
    assert report["steps"] >= voting["samples"] / 2 and report["accepted"] > 0


def test_programs_and_traces_fall_back(raw: httpx.Client) -> None:
    assert said(post_chat(raw, sampler="beam", n=2)) == {"fallback_reason": "sampler_incompatible"}
    assert said(post_chat(raw, return_sampler_trace=True)) == {"fallback_reason": "return_sampler_trace"}


def test_the_draft_model_is_served_without_one(raw: httpx.Client, pair: Live) -> None:
    ids = [model["id"] for model in raw.get("/v1/models").json()["data"]]
    assert f"{MODEL}@drafted" in ids and f"{DRAFT}@plain" in ids and f"{DRAFT}@drafted" not in ids
    assert said(post_completion(raw, model=f"{MODEL}@drafted"))["draft"] == "draft_model"
    asked = {"draft": "draft_model"}
    refused(post_completion(raw, model=DRAFT, spec_decode=asked), "spec_decode.draft", code="draft_unavailable")
    assert said(post_completion(raw, model=DRAFT))["draft"] != "draft_model"


def test_metrics_grow_by_what_answers_say(raw: httpx.Client) -> None:
    def drafted() -> float:
        found = samples(raw, "drafthouse_spec_drafted_total")
        return sum(value for labels, value in found.items() if dict(labels)["draft"] == "draft_model")

    before = drafted()
    found = said(post_completion(raw, spec_decode=WAYS[3]))
    assert drafted() == before + found["drafted"]


def test_speculation_switched_off() -> None:
    live = start(build_state(ServeConfig(max_model_len=128, draft_model=DRAFT, spec_max_len=0, threads=1)))
    try:
        with httpx.Client(base_url=live.url, timeout=60) as client:
            assert said(post_completion(client)) == {"fallback_reason": "draft_unavailable"}
            refused(post_completion(client, spec_decode={}), "spec_decode.draft", code="draft_unavailable")
    finally:
        live.stop()


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """With keys, past outputs and a part of the draft's vocabulary."""
    file = ranking_file(tmp_path_factory.mktemp("ranking"), TextCodec.load(TINY))
    settings = {"draft_model": DRAFT, "draft_ranking": file, "draft_vocab": {"1k": 1024}, "max_model_len": 256}
    live = start(build_state(ServeConfig(**settings, api_key=["one", "two"], spec_past_outputs=True, threads=1)))
    yield live
    live.stop()


def asking(live: Live, key: str, **fields: Any) -> httpx.Response:
    with httpx.Client(base_url=live.url, timeout=60, headers={"authorization": f"Bearer {key}"}) as client:
        return post_completion(client, max_tokens=40, ignore_eos=True, **fields)


def test_past_outputs_serve_their_own_key_only(configured: Live) -> None:
    def accepted(key: str, scope: str = "tenant", **fields: Any) -> int:
        way = {"draft": "suffix", "suffix": {"scope": scope}, "num_tokens": 6}
        return int(said(asking(configured, key, spec_decode=way, **fields))["accepted"])

    alone = accepted("one", "request")
    assert accepted("one", "request", store=False) == alone
    assert accepted("one") == alone  # nothing has been kept so far
    assert accepted("two") == alone
    again = accepted("one")
    assert again > alone + 10
    assert accepted("one", "request") == alone


def test_drafts_from_a_part_of_the_vocabulary(configured: Live) -> None:
    fields = {"return_token_ids": True}
    way = {"draft": "draft_model", "num_tokens": 3, "draft_vocab": "1k"}
    part, whole = (
        asking(configured, "one", spec_decode=value, **fields) for value in (way, way | {"draft_vocab": "full"})
    )
    assert shown(part) == shown(whole)
    assert said(part)["draft_vocab"] == "1k" and said(part)["accepted"] > 0
    refused(asking(configured, "one", spec_decode=way | {"draft_vocab": "2k"}), "spec_decode.draft_vocab")
