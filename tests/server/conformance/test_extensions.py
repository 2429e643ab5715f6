"""Checklist points 104-117: what Drafthouse adds."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from tests.server.conformance.answers import alike
from tests.server.conformance.helpers import chat, complete, data_lines, post_chat, post_completion, refused, stream

KEYS = {"sampler", "spec_decode", "voting", "experiment", "seed"}


def ids(client: openai.OpenAI, **fields: Any) -> list[int]:
    return list(chat(client, return_token_ids=True, ignore_eos=True, **fields).choices[0].token_ids)  # type: ignore[attr-defined]


def report(answer: Any) -> dict[str, Any]:
    return dict(answer.drafthouse)


def test_c104_spellings(client: openai.OpenAI) -> None:
    item = {"name": "top_k", "top_k": 3}
    assert ids(client, sampler=item) == ids(client, sampler=[item]) == ids(client, top_k=3)
    assert ids(client, sampler="iid") == ids(client, sampler={"name": "iid"}) == ids(client, sampler=["iid"])
    assert ids(client, sampler=[]) == ids(client)


def test_c105_order(client: openai.OpenAI) -> None:
    chain = [{"name": "top_k", "top_k": 50}, {"name": "temperature", "temperature": 0.7}]
    one, two = chat(client, sampler=chain), chat(client, sampler=chain[::-1])
    assert one.choices[0].message == two.choices[0].message
    names = [[item["name"] for item in report(answer)["sampler"]] for answer in (one, two)]
    assert names[0] == names[1] and names[0].index("temperature") < names[0].index("top_k")
    given = report(chat(client, sampler=chain, sampler_order="given"))["sampler"]
    assert [item["name"] for item in given][:2] == ["top_k", "temperature"]


@pytest.mark.parametrize(
    ("sampler", "param"),
    [
        ("nonsense", "sampler.name"),
        ({"name": "top_k", "topk": 3}, "sampler.topk"),
        ([{"name": "top_k", "top_k": "3"}], "sampler[0].top_k"),
        (["iid", "gumbel"], "sampler[1].name"),
        ([{"name": "top_k", "top_k": 3}, {"name": "top_k", "top_k": 3}], "sampler[1].name"),
        ({"top_k": 3}, "sampler.name"),
    ],
)
def test_c106_refused(raw: httpx.Client, sampler: Any, param: str) -> None:
    refused(post_chat(raw, sampler=sampler), param)


def test_c107_both_ways(client: openai.OpenAI, raw: httpx.Client) -> None:
    item = {"name": "temperature", "temperature": 0.5}
    assert ids(client, sampler=[item], temperature=0.5) == ids(client, temperature=0.5)
    refused(post_chat(raw, sampler=[item], temperature=0.6), "temperature")


def test_c108_c109_spec_decode(client: openai.OpenAI, raw: httpx.Client) -> None:
    for fields in ({"temperature": 0}, {}):
        assert (
            ids(client, spec_decode=False, **fields)
            == ids(client, spec_decode="auto", **fields)
            == ids(client, **fields)
        )
    for asked in ({}, {"draft": "prompt_lookup", "num_tokens": 3}):
        assert ids(client, spec_decode=asked, temperature=0) == ids(client, spec_decode=False, temperature=0)
    for wrong in (True, "always", 3):
        refused(post_chat(raw, spec_decode=wrong), "spec_decode", code=None)


def test_c110_what_the_runner_lacks(raw: httpx.Client) -> None:
    error = refused(post_chat(raw, response_format={"type": "json_object"}), code="unsupported_by_runner")
    assert error["param"] == "response_format"


def test_c111_voting(raw: httpx.Client) -> None:
    plain = post_chat(raw, n=4, seed=3).json()
    answer = post_chat(raw, voting={"samples": 4}, seed=3).json()
    assert len(answer["choices"]) == 1
    assert answer["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"]
    refused(post_chat(raw, voting={"samples": 4}, n=2), "n")
    refused(post_chat(raw, voting={"rule": "majority"}), "voting.rule")
    refused(post_chat(raw, voting="majority"), "voting")


def test_c112_presets(client: openai.OpenAI, raw: httpx.Client) -> None:
    name = "drafthouse-tiny@greedy"
    assert name in [model.id for model in client.models.list()]
    answer = chat(client, model=name)
    assert answer.model == name
    assert answer.choices[0].message == chat(client, temperature=0).choices[0].message
    assert ids(client, model=name, temperature=1.0) == ids(client)
    cool = "drafthouse-tiny@cool"
    assert len(ids(client, model=cool, max_tokens=None)) == 7
    assert ids(client, model=cool) == ids(client, temperature=0.5)
    assert ids(client, model=cool, temperature=1.0) == ids(client)  # the request's value, inside the preset's chain
    assert ids(client, model=cool, sampler="iid") == ids(client)
    refused(post_chat(raw, model="drafthouse-tiny@none"), "model", 404, "model_not_found")
    refused(post_completion(raw, model="drafthouse-tiny@"), "model", 404, "model_not_found")


def test_c113_report(client: openai.OpenAI, raw: httpx.Client) -> None:
    assert set(report(chat(client))) == KEYS
    assert set(report(complete(client))) == KEYS
    for post in (post_chat, post_completion):
        for options in ({}, {"stream_options": {"include_usage": True}}):
            events = data_lines(post(raw, stream=True, n=2, **options))
            assert set(events[-1]["drafthouse"]) == KEYS
            assert all("drafthouse" not in event for event in events[:-1])


def test_c114_replay(client: openai.OpenAI) -> None:
    first = chat(client, seed=None, temperature=0.8, top_k=40, logit_bias={"9": 1.5}, return_token_ids=True)
    used = report(first)
    assert isinstance(used["seed"], int)
    again = chat(client, sampler=used["sampler"], seed=used["seed"], return_token_ids=True)
    assert again.choices[0].token_ids == first.choices[0].token_ids  # type: ignore[attr-defined]
    assert report(again)["sampler"] == used["sampler"]
    greedy = report(chat(client, temperature=0))
    assert report(chat(client, sampler=greedy["sampler"], seed=1))["sampler"] == greedy["sampler"]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 3, "top_p": 0.5, "temperature_last": True},
        {"sampler": [{"name": "top_p", "top_p": 0.5}, {"name": "temperature", "temperature": 3}]}
        | {"sampler_order": "given"},
        {"model": "drafthouse-tiny@narrow", "top_p": 1, "temperature": 1},
        {"model": "drafthouse-tiny@narrow", "temperature": 0},
        {"model": "drafthouse-tiny@noisy", "draw": "iid"},
        {"model": "drafthouse-tiny@noisy", "top_k": 3},
        {"model": "drafthouse-tiny@cool", "draw": "gumbel"},
    ],
)  # fmt: skip
def test_c114_replay_of_orders_and_presets(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    first = chat(client, seed=5, return_token_ids=True, **fields)
    used = {name: value for name, value in report(first).items() if name in ("sampler", "sampler_order", "seed")}
    model = {"model": fields["model"]} if "model" in fields else {}
    again = chat(client, return_token_ids=True, **model, **used)
    assert again.choices[0].token_ids == first.choices[0].token_ids  # type: ignore[attr-defined]
    assert alike(report(again), report(first))


def test_request_over_preset_for_draws_and_empty_chains(client: openai.OpenAI) -> None:
    def draw(**fields: Any) -> str:
        return str(report(chat(client, **fields))["sampler"][-1]["name"])

    assert draw(model="drafthouse-tiny@noisy") == "gumbel"
    assert draw(model="drafthouse-tiny@noisy", sampler=["iid"]) == "iid"
    assert draw(model="drafthouse-tiny@cool", draw="gumbel") == "gumbel"
    cool = "drafthouse-tiny@cool"
    assert report(chat(client, model=cool, sampler=[]))["sampler"] == report(chat(client, model=cool))["sampler"]


def test_a_preset_may_leave_switching_a_stage_on_to_the_request(client: openai.OpenAI, raw: httpx.Client) -> None:
    broad = "drafthouse-tiny@broad"
    assert report(chat(client, model=broad))["sampler"][0]["xtc_probability"] == 0
    used = report(chat(client, model=broad, xtc_probability=0.4))["sampler"]
    assert used[0] == {"name": "xtc", "xtc_probability": 0.4, "xtc_threshold": 0.3, "xtc_protect": True}
    refused(post_chat(raw, model=broad, xtc_threshold=0.2), "xtc_threshold")


def test_c115_cumulative_logprob(client: openai.OpenAI) -> None:
    for seed in range(4):
        choice = complete(client, logprobs=0, seed=seed, max_tokens=60).choices[0]
        assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
        assert choice.cumulative_logprob == pytest.approx(sum(choice.logprobs.token_logprobs), abs=1e-3)  # type: ignore[attr-defined]


def test_c116_strict_client_accepts_everything(client: openai.OpenAI) -> None:
    everything = {"logprobs": True, "top_logprobs": 2, "return_token_ids": True, "prompt_logprobs": 1, "n": 2}
    assert report(chat(client, **everything))
    del everything["prompt_logprobs"]
    chunks = stream(client, stream_options={"include_usage": True}, **everything)
    assert report(chunks[-1])


def test_c117_vllm_xargs(client: openai.OpenAI, raw: httpx.Client) -> None:
    item = {"name": "top_k", "top_k": 2}
    expected = ids(client, sampler=item)
    assert ids(client, vllm_xargs={"sampler": item}) == expected
    assert ids(client, vllm_xargs={"sampler": '{"name": "top_k", "top_k": 2}'}) == expected
    assert ids(client, vllm_xargs={"sampler": '[{"name": "top_k", "top_k": 2}]', "spec_decode": "auto"}) == expected
    refused(post_chat(raw, vllm_xargs={"sampler": item}, sampler=item), "vllm_xargs.sampler")
    refused(post_chat(raw, vllm_xargs={"sampler": "{"}), "vllm_xargs.sampler")
    refused(post_chat(raw, vllm_xargs={"colour": 3}), "vllm_xargs.colour")
    refused(post_chat(raw, vllm_xargs={"voting": '{"rule": "x"}'}), "voting.rule")
