"""A choice on its way into vLLM's process. Needs no vLLM."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from engine.runners.vllm.choice import Choice
from engine.runners.vllm.row_block import Place
from samplers.contract import SamplerError
from samplers.programs.branch import Branch, Limits, Token
from samplers.rng import Stream, child
from tests.vllm.requests import decode_request

CHAINS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1},
    {"sampler": ["arithmetic", {"name": "typical", "typical_p": 0.9}]},
    {"logit_bias": {"5": -3.5, "7": 2}, "allowed_token_ids": [5, 6, 7], "bad_words_ids": [[5], [6, 7]]},
    {"sampler": [{"name": "dry", "dry_sequence_breakers": []}, "mirostat"], "repetition_penalty": 1.2},
    {"sampler": [{"name": "top_k", "top_k": 3}, {"name": "temperature", "temperature": 2}], "sampler_order": "given"},
]


@pytest.mark.parametrize("fields", CHAINS, ids=lambda fields: ",".join(fields) or "plain")
def test_it_arrives_as_it_was(fields: dict[str, Any]) -> None:
    request = decode_request(
        fields, n=3, first_choice=5, seed=-(2**63), begun=(8, 9), min_tokens=2, eos_token_ids=frozenset({1, 3})
    )
    sent = Choice.of(request, 1)
    arrived = Choice.unpack(json.loads(json.dumps(sent.pack())), 4096)
    assert arrived == replace(sent, chain=replace(sent.chain, neutral=()))
    assert (sent.number, sent.key) == (6, f"{request.id}/1")


def test_requests_of_vllm_itself_have_none() -> None:
    assert Choice.unpack(None, 10) is None
    assert Choice.unpack({"other": 1}, 10) is None


def test_an_unknown_sampler_is_named() -> None:
    packed = Choice.of(decode_request({"top_k": 3}), 0).pack()
    packed["drafthouse"]["stages"][0][0] = "no_such"
    with pytest.raises(SamplerError, match="no_such"):
        Choice.unpack(packed, 4096)


def test_a_branch_brings_its_random_numbers_and_a_place() -> None:
    request = decode_request({"repetition_penalty": 1.2}, n=3, seed=5, first_choice=2)
    root = Branch(Limits(9), Stream(request.seed, request.first_choice), [])
    branch = root.push(Token(8, 0.0, 0.0)).fork(1).push(Token(9, 0.0, 0.0))
    sent = Choice.behind(request, branch, request.chain, "a/1.0", Place(3, 4))
    arrived = Choice.unpack(json.loads(json.dumps(sent.pack())), 4096)
    assert arrived == replace(sent, chain=replace(sent.chain, neutral=()))
    assert arrived is not None and arrived.place == Place(3, 4) and arrived.begun == (8, 9)
    assert (arrived.seed, arrived.number) == child(root.stream, 1, 1) != root.stream
