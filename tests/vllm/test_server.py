"""The embedded model behind vLLM's engine, through HTTP."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.server.live import Live
from tests.vllm.engine_process import config

pytestmark = pytest.mark.slow

PROMPT = "def read_lines(path):\n"
LONG = "".join(f"def name_{i}(path):\n    return path\n\n" for i in range(12))


def ask(raw: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"model": "drafthouse-tiny", "prompt": PROMPT, "max_tokens": 12, "return_token_ids": True} | fields
    response = raw.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def ids(raw: httpx.Client, **fields: Any) -> list[list[int]]:
    return [choice["token_ids"] for choice in ask(raw, **fields)["choices"]]


def refused(raw: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = raw.post("/v1/completions", json={"model": "drafthouse-tiny", "prompt": PROMPT} | fields)
    assert response.status_code == 400, response.text
    return dict(response.json()["error"])


SEEDED: dict[str, dict[str, Any]] = {
    "plain": {},
    "hot": {"temperature": 5.0, "top_k": 8},
    "truncated": {"sampler": ["min_p", {"name": "typical", "typical_p": 0.9}]},
    "arithmetic": {"sampler": ["arithmetic"], "n": 4},
    "shuffled": {"sampler": [{"name": "arithmetic", "vocab_order": "seeded"}], "n": 4},
    "mirostat": {"sampler": ["mirostat"]},
    "adaptive": {"sampler": ["adaptive_p"]},
    "history": {"sampler": ["dry", "no_repeat_ngram"], "repetition_penalty": 1.2, "presence_penalty": 0.5},
    "code": {"sampler": ["rpg"]},
    "masks": {"logit_bias": {"40": -5}, "bad_words": ["return"], "min_tokens": 6},
    "greedy": {"temperature": 0},
    "greedy with penalties": {"temperature": 0, "repetition_penalty": 1.3},
    "in this order": {"sampler": ["top_k", {"name": "temperature", "temperature": 0.6}], "sampler_order": "given"},
    "gumbel": {"draw": "gumbel", "n": 2},
}


# codes are cut at the edges of tokens' intervals, and what rounding moves there grows with every token
FIRST_TOKENS = {"arithmetic": 1, "shuffled": 1}


@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_gives_the_tokens_of_the_torch_runner(raw: httpx.Client, torch_raw: httpx.Client, name: str) -> None:
    fields = {"seed": 11, "max_tokens": 24} | SEEDED[name]
    count = FIRST_TOKENS.get(name)
    ours, theirs = ids(raw, **fields), ids(torch_raw, **fields)
    assert [one[:count] for one in ours] == [one[:count] for one in theirs]


def test_chains_and_plain_requests_share_batches(raw: httpx.Client) -> None:
    asked = [{"seed": 3, "sampler": ["min_p"]}, {"temperature": 0}, {"seed": 3, "sampler": ["arithmetic"], "n": 3}]
    alone = [ids(raw, **fields) for fields in asked]
    with ThreadPoolExecutor(9) as pool:
        together = list(pool.map(lambda fields: ids(raw, **fields), [*asked, {"temperature": 0.9}] * 2))
    assert together[:3] == alone == together[4:7]
    assert all(len(one[0]) == 12 for one in (together[3], together[7]))


def test_all_rows_may_be_greedy(raw: httpx.Client) -> None:
    chain = {"temperature": 0, "logit_bias": {"40": 5}}
    plain, biased = ids(raw, temperature=0), ids(raw, **chain)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda fields: ids(raw, **fields), [{"temperature": 0}, chain] * 2))
    assert found == [plain, biased] * 2


def test_more_choices_change_none(raw: httpx.Client) -> None:
    assert ids(raw, seed=5, n=4)[:2] == ids(raw, seed=5, n=2)
    assert ids(raw, temperature=0, n=3) == ids(raw, temperature=0) * 3


def test_a_stop_string_ends_one_choice_only(raw: httpx.Client) -> None:
    whole = ask(raw, seed=5, n=4, max_tokens=40)["choices"]
    stop = whole[1]["text"][5:9]
    cut = ask(raw, seed=5, n=4, max_tokens=40, stop=[stop])["choices"]
    for one, other in zip(whole, cut, strict=True):
        assert other["text"] == one["text"].partition(stop)[0]


def test_plain_sampling_without_a_seed_is_left_to_vllm(raw: httpx.Client) -> None:
    assert ask(raw)["drafthouse"]["seed"] is None
    assert isinstance(ask(raw, sampler=["min_p"])["drafthouse"]["seed"], int)
    assert ask(raw, seed=4)["drafthouse"]["seed"] == 4


def test_prompts_share_what_is_cached(raw: httpx.Client) -> None:
    first = ask(raw, prompt=LONG, cache_salt="a")["usage"]["prompt_tokens_details"]["cached_tokens"]
    again = ask(raw, prompt=LONG, cache_salt="a")["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert first == 0 < again and again % 32 == 0
    alone = ask(raw, prompt=LONG, cache_salt="b", n=3)["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert alone == 0  # another salt finds nothing, and choices are no saving to each other


def test_log_probabilities_are_those_of_the_model(raw: httpx.Client, torch_raw: httpx.Client) -> None:
    fields = {"seed": 2, "logprobs": 3, "echo": True, "sampler": ["min_p"], "repetition_penalty": 1.2}
    ours, theirs = (ask(one, **fields)["choices"][0]["logprobs"] for one in (raw, torch_raw))
    assert ours["tokens"] == theirs["tokens"]
    assert ours["token_logprobs"][1:] == pytest.approx(theirs["token_logprobs"][1:], abs=1e-3)
    for one, other in zip(ours["top_logprobs"][1:], theirs["top_logprobs"][1:], strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_a_choice_without_tokens_fails_alone(vllm_server: Live, raw: httpx.Client) -> None:
    """The only allowed token becomes a bad word behind another one, which only some choices draw."""
    error = refused(raw, max_tokens=4, seed=1, allowed_token_ids=[40], bad_words=["C"], sampler=["min_p"])
    assert error["code"] == "constraint_unsatisfiable"
    assert vllm_server.runner.stats().masked_rows
    assert len(ids(raw, seed=1)[0]) == 12


def test_a_slow_reader_gets_everything(vllm_server: Live, raw: httpx.Client) -> None:
    fields = {"seed": 9, "max_tokens": 120, "ignore_eos": True}
    body = {"model": "drafthouse-tiny", "prompt": PROMPT, "stream": True} | fields
    text, events = "", 0
    with raw.stream("POST", "/v1/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                if not events:
                    vllm_server.wait(lambda: not vllm_server.runner.stats().requests_running, 60)
                events += 1
                text += "".join(choice["text"] for choice in json.loads(line[6:])["choices"])
    assert text == ask(raw, **fields)["choices"][0]["text"]


def test_log_probabilities_are_known_where_they_are_asked_for(raw: httpx.Client) -> None:
    for fields in ({}, {"seed": 1}):
        assert ask(raw, **fields)["choices"][0]["cumulative_logprob"] is None
        assert ask(raw, logprobs=0, **fields)["choices"][0]["cumulative_logprob"] < 0
        assert ask(raw, best_of=2, **fields)["choices"][0]["cumulative_logprob"] < 0


def test_a_client_that_leaves_ends_its_request(vllm_server: Live, raw: httpx.Client) -> None:
    body = {"model": "drafthouse-tiny", "prompt": PROMPT, "stream": True, "ignore_eos": True, "n": 4}
    with raw.stream("POST", "/v1/completions", json=body | {"max_tokens": 450}) as response:
        next(response.iter_lines())
        vllm_server.wait(lambda: vllm_server.runner.stats().requests_running > 0)
    vllm_server.wait(lambda: not vllm_server.runner.stats().requests_running)
    assert len(ids(raw, seed=1)[0]) == 12


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"sampler": "superposed"}, "sampler"),
        ({"spec_decode": {"draft": "suffix"}}, "spec_decode"),
    ],
)
def test_what_the_runner_cannot_do_is_refused(raw: httpx.Client, fields: dict[str, Any], param: str) -> None:
    error = refused(raw, **fields)
    assert (error["param"], error["code"]) == (param, "unsupported_by_runner")
    assert "torch runner" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"sampler": "no_such"}, "sampler.name"),
        ({"sampler": {"name": "min_p", "no_such": 1}}, "sampler.no_such"),
        ({"seed": 2**63}, "seed"),
        ({"top_k": 2**70}, "top_k"),
    ],
)
def test_wrong_values_do_not_reach_the_engine(raw: httpx.Client, fields: dict[str, Any], param: str) -> None:
    assert refused(raw, **fields)["param"] == param


def test_votes_are_held(raw: httpx.Client) -> None:
    question = "Mia buys 4 books for 6 dollars each. She pays with 50 dollars. How much change does Mia get?"
    body = {"model": "drafthouse-tiny", "messages": [{"role": "user", "content": question}], "seed": 1}
    vote = raw.post("/v1/chat/completions", json=body | {"voting": {"rule": "sc", "samples": 8}}).json()
    assert vote["drafthouse"]["voting"]["answer"] == "26"


def test_the_first_generation_serves_cpus() -> None:
    pytest.importorskip("vllm")
    from engine.runners.vllm.arguments import engine_arguments
    from engine.runners.vllm.start import configured
    from models.embedded import locate
    from server.runners import engine_settings

    own = config()
    found = configured(engine_arguments(locate(own.model), engine_settings(own), own.vllm_args))
    assert not found.use_v2_model_runner
