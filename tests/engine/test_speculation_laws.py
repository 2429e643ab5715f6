"""Through the whole engine every rule keeps the law of the output (T1, T8, T12): several steps, samplers with and
without memory, drafts of a model that is not the target. Chi-square against enumeration, with fixed seeds.
"""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from engine.request import DecodeRequest
from engine.runners.torch import draft_rows
from samplers.chain import resolve
from samplers.rng import Noise, Purpose, philox
from samplers.stack import SamplerStack
from samplers.testing.draw_checks import LEAST, chi_square
from spec_decode.contract import DraftPlan, DraftTree, Law
from tests.engine.speculating import (
    Answer,
    Writer,
    ask_all,
    looked_up,
    scripted,
    speculating,
    table_draft,
    table_executor,
)

pytestmark = pytest.mark.slow
VOCABULARY, LENGTH, COMPARED = 3, 5, 4
PROMPT = (1, 0, 1)
REQUESTS, CHOICES = 96, 16
SLOTS, PAGES = 512, 6000

Tokens = tuple[int, ...]


@pytest.fixture(autouse=True)
def no_collections() -> Iterator[None]:
    """Thousands of choices live at once; looking through them again and again would take a fifth of the time."""
    gc.disable()
    yield
    gc.enable()


def make_table(seed: int) -> torch.Tensor:
    """[positions, V, V]"""
    random = torch.Generator().manual_seed(seed)
    return 1.1 * torch.randn(len(PROMPT) + LENGTH, VOCABULARY, VOCABULARY, generator=random)


TABLE, DRAFT_TABLE = make_table(3), make_table(4)


def law(fields: Mapping[str, Any]) -> dict[Tokens, float]:
    """Of the first tokens, enumerated: tokens are committed to the request's own stages one by one."""
    chain, slots = resolve(dict(fields), VOCABULARY), np.array([0])

    @cache
    def row(tokens: Tokens) -> list[float]:
        stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
        stack.admit(0, chain, seed=0, choice=0, prompt_ids=PROMPT)
        for position in range(len(tokens) + 1):
            text = (*PROMPT, *tokens[:position])
            shaped, failures = stack.shape(TABLE[len(text) - 1, text[-1]][None], slots, np.array([position]))
            assert not failures
            if position < len(tokens):
                stack.accept(slots, torch.tensor(tokens[position : position + 1]))
        return shaped[0].double().softmax(0).tolist()

    found: dict[Tokens, float] = {}
    for tokens in itertools.product(range(VOCABULARY), repeat=COMPARED):
        chance = 1.0
        for position, token in enumerate(tokens):
            chance *= row(tokens[:position])[token] if chance else 0.0
        found[tokens] = chance
    return found


def p_value(seen: Sequence[Tokens], expected: Mapping[Tokens, float]) -> float:
    counted = Counter(tokens[:COMPARED] for tokens in seen)
    order = list(expected)
    chances = torch.tensor([expected[tokens] for tokens in order], dtype=torch.double)
    return chi_square(torch.tensor([counted[tokens] for tokens in order]), chances / chances.sum())


async def drawn(
    fields: Mapping[str, Any], way: Any, wrong: Any = None, requests: int = REQUESTS
) -> tuple[list[Tokens], float]:
    """(outputs of many seeds, accepted drafts per step). wrong: a drafter in place of the draft model."""
    executor = table_executor(TABLE, SLOTS, PAGES)
    sources = [scripted(wrong, True)] if wrong else [table_draft(DRAFT_TABLE, executor, SLOTS, PAGES)]
    async with speculating(executor, [*sources, *looked_up()], 4096) as running:
        chain, spec = resolve(dict(fields), VOCABULARY), running.spec(way, fields, seeded=False)
        asked = [
            DecodeRequest(str(seed), PROMPT, chain, seed, LENGTH, CHOICES, speculation=spec) for seed in range(requests)
        ]
        answers = [one for own in await ask_all(running.engine, asked) for one in own]
    assert all(len(answer.tokens) == LENGTH for answer in answers)
    return [tuple(answer.tokens) for answer in answers], _accepted(answers)


def _accepted(answers: Sequence[Answer]) -> float:
    reports = [answer.finish.speculation for answer in answers if answer.finish is not None]
    known = [one for one in reports if one is not None]
    return sum(one.accepted for one in known) / sum(one.steps for one in known)


MODEL = {"draft": "draft_model", "num_tokens": 2}
SEVERAL = MODEL | {"num_drafts": 2}
WAYS: dict[str, dict[str, Any]] = {
    "match": MODEL | {"verifier": "match"},
    "token": MODEL | {"verifier": "token", "num_tokens": 3},
    "block": MODEL | {"verifier": "block", "num_tokens": 3},
    "rrs, iid": SEVERAL | {"verifier": "rrs", "sibling_law": "iid"},
    "rrs, swor": SEVERAL | {"verifier": "rrs", "sibling_law": "swor"},
    "rrs, topk": SEVERAL | {"verifier": "rrs", "sibling_law": "topk"},
    "rrs, hu": SEVERAL | {"verifier": "rrs", "sibling_law": "hu"},
    "kseq": SEVERAL | {"verifier": "kseq", "num_drafts": 3},
    "hu": SEVERAL | {"verifier": "hu", "num_drafts": 2},
    "traversal, chain": MODEL | {"verifier": "traversal"},
    "traversal, iid": SEVERAL | {"verifier": "traversal", "sibling_law": "iid"},
    "traversal, swor": SEVERAL | {"verifier": "traversal", "sibling_law": "swor", "num_drafts": 3},
    "traversal, topk": SEVERAL | {"verifier": "traversal", "sibling_law": "topk"},
    "traversal, hu": SEVERAL | {"verifier": "traversal", "sibling_law": "hu"},
    "traversal, sequences": SEVERAL | {"verifier": "traversal", "tree": {"shape": "sequences"}},
    "traversal, growing": MODEL
    | {"verifier": "traversal", "sibling_law": "swor", "tree": {"shape": "dynamic", "top_k": 2, "max_nodes": 5}},
    "hot drafts": MODEL | {"verifier": "block", "draft_temperature": 2},
    "greedy drafts": MODEL | {"verifier": "block", "draft_temperature": 0},
    "looked up": {"draft": "suffix", "verifier": "traversal", "num_tokens": 3, "suffix": {"offset": 2}},
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "typical": {"typical_p": 0.7},
    "min_p": {"min_p": 0.3},
    "frequency": {"frequency_penalty": 0.9},
    "repetition": {"repetition_penalty": 1.8},
    "bias": {"logit_bias": {"0": 1.0, "2": -0.7}},
    "dry": {"dry_multiplier": 1.0, "dry_allowed_length": 1, "dry_sequence_breakers": []},
    "mirostat": {"mirostat_tau": 0.9, "mirostat_eta": 0.5},
    "adaptive_p": {"adaptive_p": 0.4},
    "reuse_cap": {"reuse_cap": 0.5, "reuse_min_match": 1},
    "all": {"typical_p": 0.9, "min_p": 0.1, "presence_penalty": 0.5, "logit_bias": {"1": 0.5}, "temperature": 1.4},
    "gumbel": {"draw": "gumbel", "temperature": 0.7},
}
FOR_SAMPLERS = ("token", "block", "traversal, hu", "kseq", "rrs, swor")
# each sampler under one rule: what its state has heard under the others, test_speculation_rows compares exactly
CASES = [("plain", way) for way in WAYS]
CASES += [(name, FOR_SAMPLERS[at % len(FOR_SAMPLERS)]) for at, name in enumerate(SAMPLERS)]


@pytest.mark.parametrize(("sampler", "way"), CASES, ids=[" with ".join(case) for case in CASES])
async def test_rules_keep_the_law(sampler: str, way: str) -> None:
    fields = SAMPLERS.get(sampler, {})
    outputs, accepted = await drawn(fields, WAYS[way])
    assert p_value(outputs, law(fields)) > LEAST
    assert accepted > 0.1


# ---- what must not pass


def argmax_that_says_softmax(writer: Writer, plan: DraftPlan, noise: Noise) -> DraftTree:
    """N1: a certain token with the law of a drawn one."""
    row = DRAFT_TABLE[len(writer.text) - 1, writer.text[-1]]
    return _one(int(row.argmax()), row.softmax(0))


def drops_improbable_drafts(writer: Writer, plan: DraftPlan, noise: Noise) -> DraftTree:
    """N12: what is drawn is kept only where it is probable."""
    row = DRAFT_TABLE[len(writer.text) - 1, writer.text[-1]].softmax(0)
    token = int(np.searchsorted(row.double().cumsum(0).numpy(), noise.uniform(Purpose.DRAFT)[0]))
    token = min(token, VOCABULARY - 1)
    return _one(token, row) if row[token] > 0.4 else DraftTree.one_hot([], [])


def knows_the_noise(writer: Writer, plan: DraftPlan, noise: Noise) -> DraftTree:
    """N10: drafts are drawn with the numbers that decide about them."""
    row = DRAFT_TABLE[len(writer.text) - 1, writer.text[-1]].softmax(0)
    token = int(np.searchsorted(row.double().cumsum(0).numpy(), noise.uniform(Purpose.ACCEPT)[0]))
    return _one(min(token, VOCABULARY - 1), row)


def _one(token: int, row: torch.Tensor) -> DraftTree:
    q = row[None].float()
    return DraftTree(
        np.array([token]), np.array([-1], np.int32), np.array([Law.DENSE], np.uint8), np.zeros(1, np.int32),
        np.zeros(1, np.float32), q,
    )  # fmt: skip


@pytest.mark.parametrize("wrong", [argmax_that_says_softmax, drops_improbable_drafts, knows_the_noise])
async def test_drafters_that_lie_are_noticed(wrong: Any) -> None:
    outputs, _ = await drawn({}, {"draft": "scripted", "verifier": "token", "num_tokens": 1}, wrong)
    assert p_value(outputs, law({})) < LEAST


@pytest.mark.parametrize("right", [True, False])
async def test_drafts_drawn_with_the_numbers_of_their_positions_are_noticed(
    right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N9: `block` looks at later drafts, so those that it cuts off must not be drawn again with the same numbers."""

    def by_position(keys: Any, choices: Any, starts: Any, lanes: Any, purpose: int) -> Any:
        return philox(keys, choices, starts + np.asarray(lanes), 0, purpose)

    if not right:
        monkeypatch.setattr(draft_rows, "philox", by_position)
    outputs, _ = await drawn({}, WAYS["block"], requests=256)
    assert (p_value(outputs, law({})) > LEAST) is right


async def test_a_lossy_rule_is_noticed() -> None:
    way = MODEL | {"lossy": {"typical_acceptance": {"epsilon": 0.05, "alpha": 0.3}}}
    outputs, _ = await drawn({}, way)
    assert p_value(outputs, law({})) < LEAST
