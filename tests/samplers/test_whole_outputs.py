"""The law of whole outputs, through engine, scheduler, executor and stack, equals enumeration.

Each formula is written out here once more, in plain Python, over the four tokens of a table model.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from samplers.chain import Chain, resolve
from samplers.registry import STAGES
from samplers.stack import SamplerStack
from samplers.testing.draw_checks import LEAST, chi_square
from tests.engine.table_model import (
    END,
    PROMPT,
    VOCABULARY,
    Law,
    Output,
    all_outputs,
    counts,
    enumerate_law,
    make_table,
    outputs,
    request,
    table_engine,
)

TABLE = make_table()
SAMPLES = 2000
Row = list[float]
Formula = Callable[[Row, Output], Row]  # (logits, tokens so far) -> logits


def softmax(row: Sequence[float]) -> Row:
    peak = max(row)
    weights = [math.exp(x - peak) for x in row]
    return [w / math.fsum(weights) for w in weights]


def entropy(p: Sequence[float]) -> float:
    return -math.fsum(x * math.log(x) for x in p if x > 0)


def keep(row: Row, kept: Callable[[int], bool]) -> Row:
    return [x if kept(i) else -math.inf for i, x in enumerate(row)]


def shortest(row: Row, cost: Callable[[float], float], wanted: float) -> Row:
    """The cheapest tokens until they hold the wanted mass, with ties."""
    p = softmax(row)
    order = sorted((i for i in range(len(row)) if p[i] > 0), key=lambda i: cost(p[i]))
    mass = 0.0
    for i in order:
        mass += p[i]
        last = cost(p[i])
        if mass >= wanted:
            break
    return keep(row, lambda i: p[i] > 0 and cost(p[i]) <= last)


def typical(row: Row, _: Output) -> Row:
    h = entropy(softmax(row))
    return shortest(row, lambda x: abs(-math.log(x) - h), 0.6)


def at_least(threshold: Callable[[Row], float]) -> Formula:
    def formula(row: Row, _: Output) -> Row:
        p = softmax(row)
        return keep(row, lambda i: p[i] >= min(threshold(p), max(p)))

    return formula


def repetition(row: Row, output: Output) -> Row:
    seen = {*PROMPT, *output}
    return [(x / 1.8 if x > 0 else x * 1.8) if i in seen else x for i, x in enumerate(row)]


def sigma(row: Row, _: Output) -> Row:
    finite = [x for x in row if x > -math.inf]
    mean = math.fsum(finite) / len(finite)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in finite) / len(finite))
    return keep(row, lambda i: row[i] >= max(row) - 0.9 * deviation)


CHAINS: dict[str, tuple[dict[str, Any], list[Formula]]] = {
    "plain": ({}, []),
    "gumbel": ({"draw": "gumbel"}, []),
    "arithmetic": ({"draw": "arithmetic"}, []),
    "temperature": ({"temperature": 0.6}, [lambda row, _: [x / 0.6 for x in row]]),
    "top_k": ({"top_k": 2}, [lambda row, _: keep(row, lambda i: row[i] >= sorted(row)[-2])]),
    "top_p": ({"top_p": 0.7}, [lambda row, _: shortest(row, lambda x: -x, 0.7)]),
    "min_p": ({"min_p": 0.4}, [at_least(lambda p: 0.4 * max(p))]),
    "top_a": ({"top_a": 0.6}, [at_least(lambda p: 0.6 * max(p) ** 2)]),
    "epsilon": ({"epsilon_cutoff": 0.2}, [at_least(lambda p: 0.2)]),
    "eta": ({"eta_cutoff": 0.3}, [at_least(lambda p: min(0.3, math.sqrt(0.3) * math.exp(-entropy(p))))]),
    "typical": ({"typical_p": 0.6}, [typical]),
    "top_n_sigma": ({"top_n_sigma": 0.9}, [sigma]),
    "repetition_penalty": ({"repetition_penalty": 1.8}, [repetition]),
    "frequency_penalty": (
        {"frequency_penalty": 1.5},
        [lambda row, output: [x - 1.5 * output.count(i) for i, x in enumerate(row)]],
    ),
    "presence_penalty": (
        {"presence_penalty": -1.5},
        [lambda row, output: [x + 1.5 * (i in output) for i, x in enumerate(row)]],
    ),
    "logit_bias": (
        {"logit_bias": {"0": 1.5, "2": -1}},
        [lambda row, _: [x + (1.5, 0, -1, 0)[i] for i, x in enumerate(row)]],
    ),
    "allowed_token_ids": ({"allowed_token_ids": [0, 2, 3]}, [lambda row, _: keep(row, lambda i: i != 1)]),
    "bad_words_ids": (
        {"bad_words_ids": [[2], [1, 0], [0, 0]]},  # the prompt counts
        [lambda row, output: keep(row, lambda i: i != 2 and not (i == 0 and (*PROMPT, *output)[-1] in (0, 1)))],
    ),
    "no_repeat_ngram": (
        {"no_repeat_ngram_size": 1},
        [lambda row, output: keep(row, lambda i: i not in output)],
    ),
    "frequency_penalty and gumbel": (
        {"frequency_penalty": 1.0, "temperature": 1.5, "top_p": 0.8, "draw": "gumbel"},
        [
            lambda row, output: [x - output.count(i) for i, x in enumerate(row)],
            lambda row, _: [x / 1.5 for x in row],
            lambda row, _: shortest(row, lambda x: -x, 0.8),
        ],
    ),
    "min_p and arithmetic": (
        {"draw": "arithmetic", "temperature": 1.3, "min_p": 0.2},
        [lambda row, _: [x / 1.3 for x in row], at_least(lambda p: 0.2 * max(p))],
    ),
}


def raw(output: Output) -> Row:
    last = (*PROMPT, *output)
    return TABLE[len(last) - 1, last[-1]].tolist()


def written_out(formulas: list[Formula]) -> Law:
    def next_law(output: Output) -> Row:
        row = raw(output)
        for formula in formulas:
            row = formula(row, output)
        return softmax(row)

    return enumerate_law(next_law)


def resolved(fields: dict[str, Any]) -> Chain:
    """Skips what nobody has registered yet."""
    try:
        return resolve(fields, VOCABULARY)
    except ValueError as error:
        pytest.skip(f"not registered: {error}")


async def sample(fields: dict[str, Any], samples: int = SAMPLES, n: int = 1, **sizes: int) -> list[Output]:
    """Whole outputs under as many seeds."""
    engine, _ = table_engine(TABLE, **sizes)
    try:
        several = await outputs(engine, [request(fields, seed, n) for seed in range(samples)])
    finally:
        await asyncio.to_thread(engine.close, 5.0)
    return [one for choices in several for one in choices]


def assert_law(seen: list[Output], law: Law) -> None:
    assert abs(math.fsum(law.values()) - 1) < 1e-9 and set(law) <= set(all_outputs())
    assert chi_square(*counts(seen, law)) > LEAST


@pytest.mark.parametrize("name", CHAINS)
async def test_the_law_of_a_chain(name: str) -> None:
    fields, formulas = CHAINS[name]
    resolved(fields)
    assert_law(await sample(fields), written_out(formulas))


def test_the_law_tells_chains_apart() -> None:
    """So that the tests above mean something: each chain's own outputs do not fit the plain law."""
    plain = written_out([])
    for name, (_, formulas) in CHAINS.items():
        law = written_out(formulas)
        distance = sum(abs(law.get(x, 0) - plain.get(x, 0)) for x in all_outputs()) / 2
        assert not formulas or distance > 0.05, name


async def test_xtc_is_a_mixture_over_its_coins() -> None:
    fields = {"xtc_probability": 0.5, "xtc_threshold": 0.15, "xtc_protect": False}
    resolved(fields)

    def next_law(output: Output) -> Row:
        p = softmax(raw(output))
        probable = [x for x in p if x >= 0.15]
        cut = [0.0 if x >= 0.15 and x > min(probable) else x for x in p] if len(probable) > 1 else p
        return [(a + b / sum(cut)) / 2 for a, b in zip(p, cut, strict=True)]

    assert_law(await sample(fields), enumerate_law(next_law))


@pytest.mark.parametrize(
    "fields",
    [
        {"mirostat_tau": 1.2, "mirostat_eta": 0.5},
        {"adaptive_p": 0.3},
        {"top_h": 0.6},
        {"tfs": 0.5},
        {"smoothing_factor": 0.5, "smoothing_curve": 2.0},
        {"temperature": 1.0, "dynatemp_range": 0.7},
        {"dry_multiplier": 1.5, "dry_allowed_length": 1},
        {"reuse_cap": 0.5, "reuse_min_match": 1},
        {"sampler": ["min_p", "top_p"], "sampler_order": "given"},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_the_law_of_what_one_slot_alone_is_shown(fields: dict[str, Any]) -> None:
    """Enumerated by the stack itself, one row and one history at a time: what batches and the engine add is nothing."""
    chain = resolved(fields)

    def next_law(output: Output) -> Row:
        stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
        stack.admit(0, chain, seed=0, choice=0, prompt_ids=PROMPT, ending_ids=frozenset({END}))
        slot = np.zeros(1, np.int64)
        for at in range(len(output) + 1):
            shaped, failures = stack.shape(torch.tensor([raw(output[:at])]), slot, np.array([at]))
            assert not failures
            if at < len(output):
                stack.accept(slot, torch.tensor([output[at]]))
        return shaped[0].double().softmax(0).tolist()

    assert_law(await sample(fields), enumerate_law(next_law))


@pytest.mark.parametrize("name", [name for name, (fields, _) in CHAINS.items() if "draw" not in fields])
async def test_greedy_is_the_most_probable_token_after_what_runs_in_greedy(name: str) -> None:
    fields, formulas = CHAINS[name]
    chain = resolved({**fields, "temperature": 0})
    runs = {item.name for item in chain.stages}
    assert all(STAGES.get(stage).in_greedy for stage in runs)
    expected: Output = ()
    while len(expected) < 3 and END not in expected:
        row = raw(expected)
        for formula in formulas if runs else []:
            row = formula(row, expected)
        expected += (row.index(max(row)),)
    assert set(await sample({**fields, "temperature": 0}, samples=5)) == {expected}


async def test_choices_of_one_request_have_the_law_and_are_their_own() -> None:
    fields = {"temperature": 0.9, "frequency_penalty": 0.5}
    formulas: list[Formula] = [
        lambda row, output: [x - 0.5 * output.count(i) for i, x in enumerate(row)],
        lambda row, _: [x / 0.9 for x in row],
    ]
    together = await sample(fields, samples=SAMPLES // 8, n=8)
    assert_law(together, written_out(formulas))
    assert together[:2] == (await sample(fields, samples=1, n=2))  # choice i does not depend on n


async def test_a_cramped_engine_draws_what_a_roomy_one_draws() -> None:
    """Waiting, preemption and odd batches change no token."""
    for fields in ({"frequency_penalty": 1.0, "top_p": 0.9}, {"draw": "gumbel", "repetition_penalty": 1.5}):
        roomy = await sample(fields, samples=60, n=3)
        cramped = await sample(fields, samples=60, n=3, max_seqs=5, num_pages=9, max_batch_tokens=7)
        assert cramped == roomy
