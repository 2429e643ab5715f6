"""Who draws a choice, and what vLLM is told of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.vllm.requests import decode_request

pytest.importorskip("vllm")

from vllm.sampling_params import RequestOutputKind

from engine.runners.vllm.choice import FIELD, Choice
from engine.runners.vllm.sampling import asks_more, is_native, may_filter, needs_chain, sampling_of


@pytest.mark.parametrize(
    ("fields", "options", "native"),
    [
        ({"temperature": 0}, {}, True),
        ({"temperature": 0}, {"min_tokens": 2}, False),
        ({"temperature": 0, "repetition_penalty": 1.1}, {}, False),
        ({"temperature": 0, "logit_bias": {"4": 1}}, {}, False),
        ({}, {}, False),
        ({}, {"seeded": False}, True),
        ({"temperature": 0.5, "top_k": 4, "top_p": 0.5}, {"seeded": False}, True),
        ({"temperature": 0.5, "top_k": 4, "top_p": 0.5}, {"seeded": True}, False),
        ({"temperature": 3.0}, {"seeded": False}, False),
        ({"temperature": 0.005}, {"seeded": False}, False),  # vLLM would quietly take 0.01
        ({"temperature": 0.01}, {"seeded": False}, True),
        ({"temperature": 1.0, "dynatemp_range": 0.5}, {"seeded": False}, False),
        ({"min_p": 0.1}, {"seeded": False}, False),
        ({"draw": "gumbel"}, {"seeded": False}, False),
        ({"temperature": 0.5, "top_k": 4, "temperature_last": True}, {"seeded": False}, False),
        ({"min_p": 0.1}, {"max_tokens": 0}, True),
    ],
)
def test_who_draws(fields: dict[str, Any], options: dict[str, Any], native: bool) -> None:
    assert is_native(decode_request(fields, **options)) is native


def test_vllm_draws_with_the_values_of_the_request() -> None:
    params = sampling_of(decode_request({"temperature": 0.5, "top_k": 4, "top_p": 0.25}, seeded=False), 0, native=True)
    assert (params.temperature, params.top_k, params.top_p, params.extra_args) == (0.5, 4, 0.25, None)
    assert params.seed is None


@pytest.mark.parametrize(
    ("fields", "options", "field"),
    [
        ({}, {"seeded": True}, "seed"),
        ({"min_p": 0.1}, {"seeded": False}, "min_p"),
        ({"temperature": 0, "presence_penalty": 1.0}, {}, "presence_penalty"),
        ({"temperature": 0}, {"min_tokens": 1}, "min_tokens"),
        ({"draw": "gumbel"}, {"seeded": False}, "draw"),
        ({"top_k": 4, "temperature_last": True}, {"seeded": False}, "sampler_order"),
        ({"top_k": 4, "temperature": 0.5}, {"seeded": False}, None),
        ({"min_p": 0.1}, {"max_tokens": 0}, None),
    ],
)
def test_what_takes_our_samplers_has_a_name(fields: dict[str, Any], options: dict[str, Any], field: str | None) -> None:
    assert needs_chain(decode_request(fields, **options)) == field


@pytest.mark.parametrize(
    ("fields", "options", "may"),
    [
        ({"min_p": 0.1}, {}, True),
        ({"presence_penalty": 1.0, "bad_words_ids": [[5]]}, {"min_tokens": 2}, True),
        ({"min_p": 0.1}, {"seeded": True}, False),
        ({"temperature": 0, "presence_penalty": 1.0}, {}, False),
        ({"draw": "gumbel"}, {}, False),
        ({"sampler": ["arithmetic"]}, {}, False),
        ({"sampler": ["mirostat"]}, {}, False),
    ],
)
def test_what_vllm_may_draw_from_rows_of_ours(fields: dict[str, Any], options: dict[str, Any], may: bool) -> None:
    assert may_filter(decode_request(fields, **({"seeded": False} | options))) is may


def test_vllm_draws_from_filtered_rows_as_they_are() -> None:
    request = decode_request({"temperature": 0.5, "min_p": 0.1}, seeded=False)
    params = sampling_of(request, 0, native=False, filtered=True)
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (1.0, 0, 1.0, 0.0)
    choice = Choice.unpack(params.extra_args, 4096)
    assert choice is not None and choice.filtered


def test_log_probabilities_are_asked_for_where_somebody_reads_them() -> None:
    for native in (False, True):
        known = [
            sampling_of(decode_request({}, logprobs=logprobs, compared=compared), 0, native).logprobs
            for logprobs in (None, 0, 3)
            for compared in (False, True)
        ]
        assert known == [None, 0, 0, 0, 3, 3]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"logprobs": 1, "processed_logprobs": True}, "logprobs"),
        ({"logprobs": 1, "logprob_token_ids": (4,)}, "logprobs"),
        ({"trace": 2}, "return_sampler_trace"),
    ],
)
def test_what_vllm_cannot_say_takes_our_samplers(asked: dict[str, Any], field: str) -> None:
    for fields in ({"temperature": 0}, {}):
        request = decode_request(fields, seeded=False, **asked)
        assert needs_chain(request) == field and not may_filter(request)


def test_a_mode_of_scores_that_nobody_wants_asks_nothing() -> None:
    request = decode_request({}, seeded=False, processed_logprobs=True)
    assert needs_chain(request) is None
    params = sampling_of(replace(request, seeded=True), 0, native=False)
    choice = Choice.unpack(params.extra_args, 4096)
    assert choice is not None and choice.question is None and not asks_more(request)


def test_a_chain_leaves_nothing_to_vllm() -> None:
    request = decode_request(
        {"temperature": 0.5, "top_k": 4, "repetition_penalty": 1.2, "logit_bias": {"4": 1}, "min_p": 0.1},
        min_tokens=3,
        eos_token_ids=frozenset({1}),
        stop_token_ids=frozenset({9}),
        begun=(5, 6),
        logprobs=2,
        prompt_logprobs=1,
        n=2,
    )
    params = sampling_of(request, 1, native=False)
    neutral = (params.temperature, params.top_k, params.top_p, params.min_p, params.repetition_penalty)
    assert neutral == (0.0, 0, 1.0, 0.0, 1.0)
    assert (params.logit_bias, params.min_tokens, params.seed) == (None, 0, None)
    assert (params.max_tokens, params.logprobs, params.prompt_logprobs) == (6, 2, None)
    assert params.ignore_eos and params.stop_token_ids == [1, 9]
    assert params.output_kind is RequestOutputKind.DELTA and not params.detokenize
    assert params.extra_args is not None and set(params.extra_args) == {FIELD}
    choice = Choice.unpack(params.extra_args, 4096)
    assert choice is not None
    assert choice.chain.stages == request.chain.stages
    assert (choice.number, choice.begun, choice.min_tokens) == (1, (5, 6), 3)


def test_a_prompt_is_scored_by_the_first_choice() -> None:
    fields = {"sampler": [{"name": "dry", "dry_sequence_breakers": []}]}  # which there is nobody for
    params = sampling_of(decode_request(fields, max_tokens=0, prompt_logprobs=2), 0, native=True)
    assert (params.max_tokens, params.prompt_logprobs, params.temperature) == (1, 2, 0.0)


def test_whole_answers_come_in_larger_pieces() -> None:
    assert sampling_of(decode_request(delivery_interval_s=0.1), 0, native=False).stream_interval
    assert sampling_of(decode_request(), 0, native=False).stream_interval is None
