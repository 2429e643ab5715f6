"""vLLM speculates, on a CPU and hence with its first generation of processors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.live import Live
from tests.vllm.engine_process import ARGUMENTS, INSTALLED, serve
from tests.vllm.test_server import LONG, ask, ids, refused

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed")]

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
COUNTED = {"steps", "mean_emitted", "drafted", "accepted", "acceptance_by_offset", "draft_lengths"}


@pytest.fixture(scope="module")
def speculating() -> Iterator[Live]:
    live = serve(vllm_args={**ARGUMENTS, "speculative_config": NGRAM})
    yield live
    live.stop()


@pytest.fixture
def fast(speculating: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=speculating.url, timeout=60) as fast:
        yield fast


def greedy(raw: httpx.Client, **fields: Any) -> dict[str, Any]:
    return ask(raw, **({"prompt": LONG, "max_tokens": 40, "temperature": 0, "ignore_eos": True} | fields))


def test_greedy_tokens_and_their_probabilities_are_those_without_drafts(raw: httpx.Client, fast: httpx.Client) -> None:
    for fields in ({}, {"seed": 4, "n": 2}, {"prompt": "import os\n\n"}, {"max_tokens": 3}, {"ignore_eos": False}):
        plain, drafted = greedy(raw, logprobs=2, **fields), greedy(fast, logprobs=2, **fields)
        for one, other in zip(plain["choices"], drafted["choices"], strict=True):
            assert one["token_ids"] == other["token_ids"] and one["finish_reason"] == other["finish_reason"]
            assert one["logprobs"]["token_logprobs"] == pytest.approx(other["logprobs"]["token_logprobs"], abs=1e-3)


def test_prompts_are_scored_as_without_drafts(raw: httpx.Client, fast: httpx.Client) -> None:
    scored = [ask(one, echo=True, max_tokens=0, logprobs=1)["choices"][0]["logprobs"] for one in (raw, fast)]
    assert scored[0]["token_logprobs"][1:] == pytest.approx(scored[1]["token_logprobs"][1:], abs=1e-3)


def test_answers_say_what_drafts_have_given(fast: httpx.Client) -> None:
    told = greedy(fast, spec_decode={"stats": "detailed"}, n=2)["drafthouse"]["spec_decode"]
    assert (told["draft"], told["verifier"], told["num_tokens"]) == ("prompt_lookup", "match", 3)
    assert told["ngram"] == {"min": 2, "max": 4, "pick": "first"}
    assert told["seed_stable"] and not told["lossy"]
    assert 0 < told["accepted"] <= told["drafted"]
    assert sum(int(length) * steps for length, steps in told["draft_lengths"].items()) == told["drafted"]
    assert "steps" not in told  # vLLM does not count those without drafts
    again = greedy(fast, spec_decode=told, n=2)["drafthouse"]["spec_decode"]
    assert again == told


def test_what_nobody_has_counted_is_not_told(fast: httpx.Client) -> None:
    """vLLM tells nothing of a choice that a stop string ends."""
    text = greedy(fast)["choices"][0]["text"]
    told = greedy(fast, stop=[text[20:24]])["drafthouse"]["spec_decode"]
    assert told["draft"] == "prompt_lookup" and not COUNTED & told.keys()


def test_metrics_show_the_acceptance(speculating: Live, fast: httpx.Client) -> None:
    greedy(fast)
    [(labels, done)] = speculating.runner.stats().speculation.items()
    assert labels == ("prompt_lookup", "auto")
    assert 0 < done.accepted < done.drafted and done.steps < done.emitted
    text = fast.get("/metrics").text
    for name in ("accepted_total", "drafted_total", "steps_total"):
        assert f'drafthouse_spec_{name}{{draft="prompt_lookup",verifier="auto"}}' in text
    assert 'drafthouse_spec_passed_total{draft="prompt_lookup",position="3",verifier="auto"}' in text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"seed": 1}, "seed"),
        ({"min_p": 0.1}, "min_p"),
        ({"min_tokens": 2}, "min_tokens"),
        ({"sampler": ["arithmetic"]}, "draw"),
        ({"temperature": 0, "repetition_penalty": 1.2}, "repetition_penalty"),
        ({"temperature": 0, "logit_bias": {"40": 5}}, "logit_bias"),
        ({"temperature": 0.8, "top_p": 0.9}, "temperature"),  # of sampling that vLLM's CPU kernels get wrong
        ({"temperature": 0, "spec_decode": False}, "spec_decode"),
        ({"temperature": 0, "spec_decode": {"draft": "suffix"}}, "spec_decode.draft"),
        ({"temperature": 0, "spec_decode": {"num_tokens": 5}}, "spec_decode.num_tokens"),
    ],
)
def test_what_cannot_be_served_is_refused(fast: httpx.Client, fields: dict[str, Any], param: str) -> None:
    error = refused(fast, max_tokens=4, **fields)
    assert (error["param"], error["code"]) == (param, "unsupported_by_runner")
    assert "torch runner" in error["message"]
    assert len(ids(fast, temperature=0)[0]) == 12  # nobody else is hurt


def test_streams_are_refused_alike(fast: httpx.Client) -> None:
    assert refused(fast, stream=True, seed=1, max_tokens=4)["param"] == "seed"
