"""`match` gives, for every sampler, every source and every drafter, the very tokens that plain decoding gives (T5).

A table stands for the model: its rows do not depend on what else is in a step, so equal means equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from engine.request import DecodeRequest
from samplers.chain import resolve
from samplers.model_facts import ModelFacts
from samplers.registry import DRAWS, STAGES
from samplers.rng import Noise
from spec_decode.contract import DraftPlan, DraftTree, LoadedSource
from tests.engine.speculating import (
    Answer,
    Guess,
    Speculating,
    Writer,
    ask_all,
    assert_same,
    looked_up,
    one_hot_chain,
    scripted,
    speculating,
    table_draft,
    table_executor,
)

VOCABULARY, LENGTH, CHOICES = 24, 30, 2
END = 23
PROMPTS = ((7,), (9, 2, 11, 9, 2, 11, 9))
PIECES = [b"x", b" = ", b"1", b"\n", b"y", b"(", b")", b"if ", b":", b"a", b"b", b" + "] * 2


def make_table(seed: int, spread: float = 2.5) -> torch.Tensor:
    """[positions, V, V]: the position matters little, so that outputs repeat themselves and can be looked up."""
    random = torch.Generator().manual_seed(seed)
    table = torch.randn(1, VOCABULARY, VOCABULARY, generator=random) * spread
    return table + 0.3 * torch.randn(60, VOCABULARY, VOCABULARY, generator=random)


TABLE = make_table(0)
DRAFT_TABLE = TABLE + 0.8 * torch.randn(TABLE.shape, generator=torch.Generator().manual_seed(1))
FACTS = ModelFacts(PIECES, head=torch.randn(VOCABULARY, 6, generator=torch.Generator().manual_seed(2)))

CHAINS: dict[str, dict[str, Any]] = {
    "plain": {},
    "greedy": {"temperature": 0},
    "greedy, penalised": {"temperature": 0, "frequency_penalty": 0.7, "repetition_penalty": 1.3},
    "temperature": {"temperature": 0.7, "dynatemp_range": 0.3},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "typical": {"typical_p": 0.7},
    "tfs": {"tfs": 0.8},
    "top_a": {"top_a": 0.3},
    "top_h": {"top_h": 0.6},
    "top_n_sigma": {"top_n_sigma": 1.5},
    "epsilon": {"epsilon_cutoff": 0.02},
    "eta": {"eta_cutoff": 0.1},
    "smoothing": {"smoothing_factor": 0.3, "smoothing_curve": 1.5},
    "xtc": {"xtc_probability": 0.6, "xtc_threshold": 0.1},
    "mirostat": {"mirostat_tau": 2.0, "mirostat_eta": 0.3},
    "adaptive_p": {"adaptive_p": 0.4},
    "repetition_penalty": {"repetition_penalty": 1.4, "repetition_last_n": 6},
    "frequency_penalty": {"frequency_penalty": 0.6},
    "presence_penalty": {"presence_penalty": 0.9},
    "dry": {"dry_multiplier": 1.2, "dry_allowed_length": 2, "dry_sequence_breakers": []},
    "no_repeat_ngram": {"no_repeat_ngram_size": 3},
    "reuse_cap": {"reuse_cap": 0.4, "reuse_min_match": 2},
    "bad_words": {"bad_words_ids": [[3, 4], [7], [1, 2, 5]]},
    "logit_bias": {"logit_bias": {"4": 1.5, "9": -2}},
    "allowed": {"allowed_token_ids": [*range(2, 20), END]},
    "rpg": {"rpg": {"language": "python", "lambda": 0.5, "penalise": "all"}},
    "gumbel": {"draw": "gumbel", "temperature": 1.2},
    "arithmetic": {"draw": "arithmetic"},
    "arithmetic, seeded order": {"sampler": [{"name": "arithmetic", "vocab_order": "seeded"}], "min_p": 0.05},
    "basis_aware": {"draw": "basis_aware"},
    "everything": {
        "typical_p": 0.9,
        "min_p": 0.02,
        "frequency_penalty": 0.3,
        "logit_bias": {"5": 1},
        "no_repeat_ngram_size": 4,
        "xtc_probability": 0.3,
        "draw": "gumbel",
    },
    "given order": {"sampler": ["min_p", {"name": "temperature", "temperature": 1.5}], "sampler_order": "given"},
}

LOOKED_UP: dict[str, dict[str, Any]] = {
    "prompt lookup": {"draft": "prompt_lookup", "num_tokens": 5, "ngram": {"min": 1}},
    "suffix chain": {"draft": "suffix", "num_tokens": 4, "suffix": {"offset": 2}},
    "suffix tree": {"draft": "suffix", "num_drafts": 3, "num_tokens": 3, "suffix": {"factor": 4, "min_prob": 0.01}},
    "suffix, growing": {
        "draft": "suffix",
        "num_tokens": 4,
        "tree": {"shape": "dynamic", "top_k": 3, "max_nodes": 9},
    },
}
MODEL: dict[str, dict[str, Any]] = {
    "sampled chain": {"draft": "draft_model", "num_tokens": 3, "draft_noise": "independent"},
    "sampled tree": {"draft": "draft_model", "num_drafts": 3, "num_tokens": 2, "draft_noise": "independent"},
    "greedy chain": {"draft": "draft_model", "verifier": "match", "num_tokens": 5, "draft_temperature": 0},
    "greedy tree": {"draft": "draft_model", "num_drafts": 4, "num_tokens": 3, "draft_temperature": 0},
    "shared chain": {"draft": "draft_model", "num_tokens": 4},
    "shared tree": {"draft": "draft_model", "num_drafts": 2, "num_tokens": 2},
    "shared, growing": {
        "draft": "draft_model",
        "num_tokens": 3,
        "tree": {"shape": "dynamic", "top_k": 2, "max_nodes": 6},
    },
    "hot drafts": {"draft": "draft_model", "num_tokens": 2, "draft_temperature": 2.5, "draft_noise": "independent"},
    "auto": {"draft": "draft_model"},
}


FEW = {name: (LOOKED_UP | MODEL)[name] for name in ("prompt lookup", "suffix tree", "sampled tree", "shared chain")}


def asked(running: Speculating, name: str, fields: Mapping[str, Any], way: Any, **more: Any) -> list[DecodeRequest]:
    """The same questions, each with its own seed."""
    settings: dict[str, Any] = {"eos_token_ids": frozenset({END}), "min_tokens": 10, "logprobs": 3} | more
    chain = resolve(dict(fields), VOCABULARY, FACTS)
    spec = None if way is None else running.spec(way, fields)
    return [
        DecodeRequest(f"{name} {i}", prompt, chain, 11 + i, LENGTH, CHOICES, speculation=spec, **settings)
        for i, prompt in enumerate(PROMPTS)
    ]


async def compared(running: Speculating, fields: Mapping[str, Any], ways: Mapping[str, Any], **more: Any) -> None:
    """All ways at once, and then each question by itself without drafts."""
    requests = [one for name, way in ways.items() for one in asked(running, name, fields, way, **more)]
    found = await ask_all(running.engine, requests)
    plain = await ask_all(running.engine, asked(running, "plain", fields, None, **more))
    for i, answers in enumerate(found):
        for choice, answer in enumerate(answers):
            assert_same(answer, plain[i % len(PROMPTS)][choice])
    for name in ways:
        mine = [
            answer for one, answers in zip(requests, found, strict=True) if one.id[:-2] == name for answer in answers
        ]
        reports = [answer.finish.speculation for answer in mine if answer.finish is not None]
        assert name == "auto" or sum(one.drafted for one in reports if one is not None) > 0, name
        for answer, report in zip(mine, reports, strict=True):
            assert report is not None and report.emitted == len(answer.tokens)


def sources(executor: Any) -> list[LoadedSource]:
    return [*looked_up(), table_draft(DRAFT_TABLE, executor, 64)]


@pytest.mark.parametrize("name", CHAINS)
async def test_every_sampler_with_every_source(name: str) -> None:
    executor = table_executor(TABLE, facts=FACTS)
    async with speculating(executor, sources(executor)) as running:
        await compared(running, CHAINS[name], LOOKED_UP | MODEL)


def test_no_sampler_is_left_out() -> None:
    chains = [resolve(dict(fields), VOCABULARY, FACTS) for fields in CHAINS.values()]
    assert {stage.name for chain in chains for stage in chain.stages} | {"min_tokens"} == {
        stage.name for stage in STAGES
    }
    assert {chain.draw.name for chain in chains} == {draw.name for draw in DRAWS}


@pytest.mark.parametrize(
    "more",
    [
        {"processed_logprobs": True},
        {"logprobs": 0, "logprob_token_ids": (5, 1, 22)},
        {"logprobs": None},
        {"logprobs": VOCABULARY, "processed_logprobs": True, "logprob_token_ids": (0,)},
        {"min_tokens": 0, "stop_token_ids": frozenset({3, 8})},
        {"min_tokens": LENGTH, "stop_token_ids": frozenset({3, 8})},
        {"first_choice": 5},
        {"begun": (4, 5, 6, 7)},
    ],
    ids=str,
)
@pytest.mark.parametrize("fields", [{"top_p": 0.9}, {"min_p": 0.05, "presence_penalty": 0.5}], ids=str)
async def test_what_else_is_asked_for(fields: dict[str, Any], more: dict[str, Any]) -> None:
    executor = table_executor(TABLE, facts=FACTS)
    async with speculating(executor, sources(executor)) as running:
        await compared(running, fields, FEW, **more)


# ---- drafters of which nothing good can be said


def random_tree(writer: Writer, plan: DraftPlan, noise: Noise) -> DraftTree:
    """Any tokens in any tree, twins among them."""
    random = np.random.default_rng([7, len(writer.text), writer.stream.choice, writer.stream.key])
    count = int(random.integers(0, plan.max_nodes + 1))
    parents: list[int] = []
    depths = [0]
    for _ in range(count):
        able = [place for place, depth in enumerate(depths) if depth < plan.max_depth]
        place = int(random.choice(able))
        parents.append(place - 1)
        depths.append(depths[place] + 1)
    return DraftTree.one_hot(random.integers(0, VOCABULARY, count).tolist(), parents)


def twins(writer: Writer, plan: DraftPlan, noise: Noise) -> DraftTree:
    """Every sibling is the same token."""
    most = min(plan.max_nodes, 6)
    return (
        DraftTree.one_hot([writer.text[-1]] * most, [-1, -1, 0, 0, 1, 1][:most])
        if plan.max_depth > 1
        else one_hot_chain([writer.text[-1]], plan)
    )


def endings(writer: Writer, plan: DraftPlan, noise: Noise) -> DraftTree:
    """The end of the text, and something behind it."""
    return one_hot_chain([END, 4, END, 4], plan)


Known = Mapping[tuple[int, int], Sequence[int]]  # (seed, choice) -> plain tokens


def oracle(known: Known, wrong_from: int = 10**6, siblings: int = 0) -> Guess:
    """Knows what will be said; is wrong from so many tokens on. siblings: wrong ones in front of each right one."""

    def guess(writer: Writer, plan: DraftPlan, noise: Noise) -> DraftTree:
        ahead = known[writer.stream.key, writer.stream.choice][len(writer.output) :]
        tokens: list[int] = []
        parents: list[int] = []
        place = -1
        for depth, token in enumerate(ahead[: plan.max_depth]):
            level = [(token + 1 + other) % VOCABULARY for other in range(siblings)]
            level.append(token if depth < wrong_from else (token + 1) % VOCABULARY)
            if len(tokens) + len(level) > plan.max_nodes:
                break
            tokens += level
            parents += [place] * len(level)
            place = len(tokens) - 1
        return DraftTree.one_hot(tokens, parents)

    return guess


DRAFTERS: dict[str, Callable[[Known], Guess]] = {
    "random": lambda known: random_tree,
    "twins": lambda known: twins,
    "endings": lambda known: endings,
    "oracle": oracle,
    "always wrong": lambda known: oracle(known, 0),
    "wrong at the third": lambda known: oracle(known, 2),
    "among siblings": lambda known: oracle(known, siblings=2),
    "wrong among siblings": lambda known: oracle(known, 3, siblings=2),
}
TREE = {"draft": "scripted", "num_drafts": 8, "num_tokens": 7, "tree": {"max_nodes": 24, "depth": 7}}


@pytest.mark.parametrize(
    "fields",
    [{}, {"temperature": 0}, {"draw": "gumbel", "dry_multiplier": 1, "dry_sequence_breakers": []}, CHAINS["reuse_cap"]],
    ids=str,
)
@pytest.mark.parametrize("drafter", DRAFTERS)
async def test_any_drafter(drafter: str, fields: dict[str, Any]) -> None:
    async with speculating(table_executor(TABLE), []) as running:
        plain = await ask_all(running.engine, asked(running, "plain", fields, None))
    known = {(11 + i, choice): one.tokens for i, own in enumerate(plain) for choice, one in enumerate(own)}
    async with speculating(table_executor(TABLE), [scripted(DRAFTERS[drafter](known))]) as running:
        found = await ask_all(running.engine, asked(running, "drafted", fields, TREE))
        for i, answers in enumerate(found):
            for choice, answer in enumerate(answers):
                assert_same(answer, plain[i][choice])
        assert running.drafted() > 0
    every = [answer for answers in found for answer in answers]
    if drafter in ("oracle", "among siblings"):
        assert all(_steps(answer) <= 2 + len(answer.tokens) / 7 for answer in every)
    if drafter == "always wrong":
        assert all(_steps(answer) == len(answer.tokens) for answer in every)


def _steps(answer: Answer) -> int:
    assert answer.finish is not None and answer.finish.speculation is not None
    return answer.finish.speculation.steps
