"""Every registered sampler through the API: by name, by its flat fields, reported, replayed; and laws of a few."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest

from samplers.chain import INTERNAL
from samplers.registry import DRAWS, STAGES
from tests.server.conformance.helpers import complete, post_completion, refused
from tests.server.live import Live

REQUIRED = {"allowed_token_ids": [70, 71, 72, 309], "bad_words_ids": [[70]], "logit_bias": {"70": 2.0}}
NAMES = sorted(stage.name for stage in STAGES if stage.name not in INTERNAL)
embedded_only = pytest.mark.parametrize(
    "shared_server", [pytest.param("embedded", marks=pytest.mark.slow)], indirect=True
)


def report(answer: openai.types.Completion) -> list[dict[str, Any]]:
    return list(answer.drafthouse["sampler"])  # type: ignore[attr-defined]


def tokens(answer: openai.types.Completion) -> list[list[int]]:
    return [choice.token_ids for choice in answer.choices]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_stages_by_name_and_by_field(client: openai.OpenAI, name: str) -> None:
    item = {"name": name} | ({name: REQUIRED[name]} if name in REQUIRED else {})
    if name == "temperature":
        item["temperature"] = 0.7  # named alone it is 1, which changes nothing
    first = complete(client, sampler=item, n=2, return_token_ids=True, max_tokens=12)
    (stage, draw) = report(first)
    assert stage["name"] == name and draw["name"] == "iid"
    again = complete(client, sampler=report(first), n=2, return_token_ids=True, max_tokens=12)
    assert tokens(again) == tokens(first)
    if name != "bad_words_ids":  # its flat field holds words, not ids
        flat = {field: value for field, value in stage.items() if field != "name"}
        assert report(complete(client, **flat, max_tokens=1))[0] == stage


@pytest.mark.parametrize("name", sorted(draw.name for draw in DRAWS))
def test_draws_by_name_and_by_field(client: openai.OpenAI, live: Live, raw: httpx.Client, name: str) -> None:
    if name == "basis_aware" and live.runner.facts.head is None:
        refused(post_completion(raw, sampler=name), "draw")
        return
    first = complete(client, sampler=name, n=2, return_token_ids=True, max_tokens=12)
    assert [item["name"] for item in report(first)] == [name]
    again = complete(client, sampler=report(first), n=2, return_token_ids=True, max_tokens=12)
    assert tokens(again) == tokens(first)
    assert report(complete(client, draw=name, max_tokens=1)) == report(first)


def test_conflicts_name_both(raw: httpx.Client) -> None:
    assert "top_p" in refused(post_completion(raw, mirostat_tau=5, top_p=0.9))["message"]
    refused(post_completion(raw, mirostat_tau=5, adaptive_p=0.5))
    refused(post_completion(raw, temperature=0.2, dynatemp_range=0.5), "dynatemp_range")
    refused(post_completion(raw, codebook="lattice", sampler={"name": "arithmetic", "codebook": "sobol"}), "codebook")


@embedded_only
def test_arithmetic_choices_are_spread(client: openai.OpenAI) -> None:
    """Each first token comes floor or ceil of n times its probability often."""
    n = 64
    answer = complete(client, sampler="arithmetic", n=n, max_tokens=1, return_token_ids=True, logprobs=5, seed=3)
    counts = Counter(ids[0] for ids in tokens(answer))
    logprobs = {
        ids[0]: choice.logprobs.token_logprobs[0]  # type: ignore[union-attr,index]
        for ids, choice in zip(tokens(answer), answer.choices, strict=True)
    }
    for token, count in counts.items():
        expected = n * math.exp(logprobs[token])
        assert math.floor(expected - 1e-3) <= count <= math.ceil(expected + 1e-3)
    assert len(counts) > 5


@embedded_only
def test_min_p_keeps_what_is_near_the_most_probable_token(client: openai.OpenAI) -> None:
    """Computed from the answer's own log-probabilities."""
    answer = complete(client, sampler={"name": "min_p", "min_p": 0.2}, n=32, max_tokens=6, logprobs=1, seed=5)
    for choice in answer.choices:
        assert choice.logprobs is not None and choice.logprobs.top_logprobs is not None
        for own, best in zip(choice.logprobs.token_logprobs or [], choice.logprobs.top_logprobs, strict=True):
            assert own is not None and own >= max(best.values()) + math.log(0.2) - 1e-4


@embedded_only
def test_no_repeat_ngram_over_http(client: openai.OpenAI) -> None:
    fields = {"no_repeat_ngram_size": 2, "max_tokens": 60, "return_token_ids": True, "ignore_eos": True}
    (ids,) = tokens(complete(client, temperature=0, **fields))
    pairs = list(pairwise(ids))
    assert len(set(pairs)) == len(pairs)
