"""Every sampler's rows, those that depend on the tokens before included: the law of what is emitted stays theirs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import samplers  # noqa: F401  registers the stages and draws
from samplers.chain import resolve
from samplers.registry import STAGES
from samplers.stack import SamplerStack
from spec_decode.verify.reference import LOSSLESS, Row
from tests.spec_decode.drafters import hu, iid, static, table
from tests.spec_decode.enumeration import Model, Tokens, steps_error

VOCAB = 3
FIELDS: tuple[Mapping[str, Any], ...] = (
    {"adaptive_p": 0.4},
    {"allowed_token_ids": [0, 2]},
    {"bad_words_ids": [[1, 2], [0]]},
    {"epsilon_cutoff": 0.2},
    {"eta_cutoff": 0.3},
    {"dry_multiplier": 0.8, "dry_allowed_length": 1, "dry_sequence_breakers": []},
    {"logit_bias": {"1": -1.5}},
    {"min_p": 0.4},
    {"mirostat_tau": 0.8},
    {"no_repeat_ngram_size": 2},
    {"repetition_penalty": 1.7},
    {"frequency_penalty": 0.8},
    {"presence_penalty": 0.8},
    {"smoothing_factor": 0.5},
    {"tfs": 0.6},
    {"temperature": 0.6, "dynatemp_range": 0.3},
    {"top_a": 0.5},
    {"top_h": 0.5},
    {"top_k": 2},
    {"top_n_sigma": 1.0},
    {"top_p": 0.7},
    {"typical_p": 0.5},
    {"xtc_probability": 0.5, "xtc_threshold": 0.2},
    {"typical_p": 0.8, "min_p": 0.1, "frequency_penalty": 0.5, "logit_bias": {"2": 1.0}, "temperature": 0.8},
)
ELSEWHERE = {"min_tokens", "reuse_cap", "rpg"}  # need endings, long outputs, text


def processed(fields: Mapping[str, Any]) -> Model:
    """The rows of a toy model behind a request's stages, the tokens before having been committed one by one."""
    chain, model, slots = resolve(dict(fields), VOCAB), table(31, VOCAB), np.array([0])

    @cache
    def row(tokens: Tokens) -> Row:
        stack = SamplerStack(1, VOCAB, torch.device("cpu"))
        stack.admit(0, chain, seed=5, choice=0, prompt_ids=[1])
        for position in range(len(tokens) + 1):
            logits = torch.tensor([model(tokens[:position])]).log()
            shaped, failures = stack.shape(logits, slots, np.array([position]))
            assert not failures
            if position < len(tokens):
                assert not stack.accept(slots, torch.tensor(tokens[position : position + 1]))
        shares: Row = shaped[0].double().softmax(0).tolist()
        return shares

    return row


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: ", ".join(fields))
def test_rules_keep_the_law_of_every_sampler(fields: Mapping[str, Any]) -> None:
    target, draft = processed(fields), table(32, VOCAB)
    for rule in ("token", "block", "match"):
        assert steps_error(target, static(draft, iid, [1, 1]), LOSSLESS[rule], VOCAB, 3) < 1e-12
    for rule in ("rrs", "hu", "traversal"):
        assert steps_error(target, static(draft, hu, [2, 1]), LOSSLESS[rule], VOCAB, 3) < 1e-12
    assert steps_error(target, static(draft, iid, [2]), LOSSLESS["kseq"], VOCAB, 3) < 1e-12
    plain = table(31, VOCAB)
    rows = [(), (0,), (1,), (2,), (0, 0), (1, 1), (1, 2)]
    assert max(abs(a - b) for tokens in rows for a, b in zip(target(tokens), plain(tokens), strict=True)) > 1e-3


def test_no_sampler_is_left_out() -> None:
    named = {stage.name for fields in FIELDS for stage in resolve(dict(fields), VOCAB).stages}
    assert named | ELSEWHERE == {stage.name for stage in STAGES}
