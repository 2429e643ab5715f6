"""Whatever the rule, a token is drawn from the row that plain decoding has behind the same tokens: every sampler's
state has heard of all tokens that were emitted, and of nothing else (spec_decode.md 3.1.4; T8, N11).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from engine.request import DecodeRequest
from samplers.chain import resolve
from samplers.registry import STAGES
from samplers.stack import SamplerStack
from spec_decode.facts import SamplerClass, sampler_class
from tests.engine.speculating import Answer, ask_all, speculating, table_draft, table_executor
from tests.engine.test_speculation_match import CHAINS, DRAFT_TABLE, END, FACTS, TABLE, VOCABULARY

PROMPT, LENGTH, CHOICES, LEAST = (9, 2, 11, 9, 2), 30, 3, 12
MODEL = {"draft": "draft_model", "num_tokens": 3}
WAYS: dict[str, dict[str, Any]] = {
    "token": MODEL | {"verifier": "token"},
    "block": MODEL | {"verifier": "block"},
    "rrs": MODEL | {"verifier": "rrs", "num_drafts": 2, "sibling_law": "swor"},
    "kseq": MODEL | {"verifier": "kseq", "num_drafts": 3},
    "hu": MODEL | {"verifier": "hu", "num_drafts": 3},
    "traversal": MODEL | {"verifier": "traversal", "num_drafts": 3},
    "typical acceptance": MODEL | {"lossy": {"typical_acceptance": {}}},
    "match": MODEL | {"verifier": "match", "num_drafts": 2},
}
DRAWN_FROM_ROWS = [
    name
    for name, fields in CHAINS.items()
    if sampler_class(resolve(dict(fields), VOCABULARY, FACTS)) is SamplerClass.ROWS and fields.get("temperature") != 0
]


def plain_row(fields: Mapping[str, Any], seed: int, choice: int, answer: Answer) -> list[torch.Tensor]:
    """[V] log-probabilities behind each beginning of the output, token by token."""
    stack, slots = SamplerStack(1, VOCABULARY, torch.device("cpu"), FACTS), np.array([0])
    chain = resolve(dict(fields), VOCABULARY, FACTS)
    stack.admit(0, chain, seed=seed, choice=choice, prompt_ids=PROMPT, ending_ids=frozenset({END}), min_tokens=LEAST)
    text, rows = list(PROMPT), []
    for position, token in enumerate(answer.tokens):
        shaped, failures = stack.shape(TABLE[len(text) - 1, text[-1]][None], slots, np.array([position]))
        assert not failures
        rows.append(shaped[0].log_softmax(0))
        stack.accept(slots, torch.tensor([token]))
        text.append(token)
    return rows


@pytest.mark.parametrize("name", DRAWN_FROM_ROWS)
async def test_every_token_comes_from_the_row_of_plain_decoding(name: str) -> None:
    fields = CHAINS[name]
    executor = table_executor(TABLE, facts=FACTS)
    async with speculating(executor, [table_draft(DRAFT_TABLE, executor, 64)]) as running:
        requests = [
            DecodeRequest(
                way,
                PROMPT,
                resolve(dict(fields), VOCABULARY, FACTS),
                20 + at,
                LENGTH,
                CHOICES,
                min_tokens=LEAST,
                eos_token_ids=frozenset({END}),
                logprobs=4,
                processed_logprobs=True,
                speculation=running.spec(value, fields, seeded=False),
            )
            for at, (way, value) in enumerate(WAYS.items())
        ]
        found: Sequence[list[Answer]] = await ask_all(running.engine, requests)
        assert running.drafted() > 0
    for request, answers in zip(requests, found, strict=True):
        for choice, answer in enumerate(answers):
            assert len(answer.tokens) >= LEAST and len(answer.scores) == len(answer.tokens)
            rows = plain_row(fields, request.seed, choice, answer)
            for token, score, row in zip(answer.tokens, answer.scores, rows, strict=True):
                assert score.logprob == pytest.approx(float(row[token]), abs=1e-4), request.id
                assert score.logprob > -torch.inf
                for other, value in score.top:
                    assert value == pytest.approx(float(row[other]), abs=1e-4), request.id


def test_stages_with_memory_are_among_them() -> None:
    named = {stage.name for name in DRAWN_FROM_ROWS for stage in resolve(CHAINS[name], VOCABULARY, FACTS).stages}
    assert named | {"min_tokens"} == {stage.name for stage in STAGES}
