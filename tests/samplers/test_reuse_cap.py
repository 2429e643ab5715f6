"""The reuse cap: replayed from its definition, and on a model that reinforces its own repetitions."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.chain import resolve
from samplers.contract import SamplerError
from samplers.stack import SamplerStack
from tests.samplers.lives import VOCABULARY, Life, Lives, model_row


def capped(row: torch.Tensor, token: int, highest: float) -> torch.Tensor:
    """By the formula: l_v is shifted by ln[c (1 - p) / (p (1 - c))]. row: [V] fp64."""
    p = row.softmax(0)[token].item()
    out = row.clone()
    if highest < p < 1:
        out[token] += math.log(highest * (1 - p) / (p * (1 - highest)))
    return out


def reference(life: Life) -> torch.Tensor:
    """Replay the output, recording each token's probability."""
    size, cap = life.fields["reuse_min_match"], life.fields["reuse_cap"]
    recorded: dict[int, float] = {}
    row = torch.empty(0)
    for end in range(life.known, len(life.output) + 1):
        ids = life.prompt + life.output[:end]
        row = model_row(life.prompt, life.output[:end]).double()
        places = [s for s in recorded if s >= size and ids[s - size : s] == ids[len(ids) - size :]]
        if cap and places:
            row = capped(row, ids[places[-1]], cap * recorded[places[-1]])
        if end < len(life.output):
            probability = row.softmax(0)[life.output[end]].item()
            if probability > 0:
                recorded[len(ids)] = probability
    return row


def some_fields(chance: random.Random) -> dict[str, Any]:
    return {
        "reuse_cap": chance.choice([0, 0.3, 0.9, 1.0]),
        "reuse_min_match": chance.choice([1, 2, 3]),
        "temperature": chance.choice([0, 1]),
    }


@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_of_events_equals_a_replay(seed: int) -> None:
    Lives(seed, reference, some_fields).run(60)


@pytest.mark.parametrize("cap", [0.5, 0.9])
def test_repetition_that_reinforces_itself_fades(cap: float) -> None:
    """The toy model copies with more confidence after every copy; the cap's ratio is what is left."""
    loop, copies = [3, 1, 4, 2], 12
    stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
    chain = resolve({"reuse_cap": cap, "reuse_min_match": 4, "temperature": 0}, VOCABULARY)
    stack.admit(0, chain, seed=0, choice=0, prompt_ids=[0])
    history: list[list[float]] = [[] for _ in loop]
    for step in range(len(loop) * copies):
        token, strength = loop[step % len(loop)], step // len(loop)
        row = torch.zeros(1, VOCABULARY)
        row[0, token] = 1.0 + strength
        shaped, _ = stack.shape(row, np.array([0]), np.array([step]))
        history[step % len(loop)].append(shaped[0].softmax(0)[token].item())
        others = torch.arange(VOCABULARY) != token
        assert torch.equal(shaped[0][others], row[0][others])  # ratios of the others stay
        stack.accept(np.array([0]), torch.tensor([token]))
    for probabilities in history:
        # the first copy is looked for only once the match is long enough: from the second pass at the latest
        for earlier, later in itertools.pairwise(probabilities[1:]):
            assert later <= cap * earlier * (1 + 1e-4)
        assert probabilities[-1] <= cap ** (copies - 2) * (1 + 1e-2)


def test_at_temperature_zero_it_can_change_the_argmax() -> None:
    stack = SamplerStack(1, 4, torch.device("cpu"))
    chain = resolve({"reuse_cap": 0.5, "reuse_min_match": 2, "temperature": 0}, 4)
    stack.admit(0, chain, seed=0, choice=0, prompt_ids=[3])
    row, drawn = torch.tensor([[0.0, 0.1, 0.0, 0.0]]), []
    for step in range(8):
        tokens = stack.sample(row, np.array([0]), np.array([step])).tokens
        stack.accept(np.array([0]), tokens)
        drawn += tokens.tolist()
    assert drawn[:3] == [1, 1, 1] and set(drawn) > {1}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.floats(-30, 30, width=32), st.just(-math.inf)), min_size=4, max_size=4))
def test_no_row_is_emptied_and_masks_stay(row: list[float]) -> None:
    stack = SamplerStack(1, 4, torch.device("cpu"))
    chain = resolve({"reuse_cap": 0.5, "reuse_min_match": 1}, 4)
    stack.admit(0, chain, seed=0, choice=0, prompt_ids=[3])
    logits = torch.tensor([row])
    for step in range(3):
        shaped, failures = stack.shape(logits, np.array([0]), np.array([step]))
        assert not failures and torch.equal(shaped > -torch.inf, logits > -torch.inf)
        stack.accept(np.array([0]), torch.tensor([1]))


def test_without_a_match_rows_are_bit_identical() -> None:
    stack = SamplerStack(1, 4, torch.device("cpu"))
    stack.admit(0, resolve({"reuse_cap": 0.5}, 4), seed=0, choice=0, prompt_ids=[1] * 30)
    logits = torch.randn(1, 4)
    assert torch.equal(stack.shape(logits, np.array([0]), np.array([0]))[0], logits)


def test_ranges() -> None:
    assert not resolve({"reuse_cap": 0, "reuse_min_match": 3}, 4).stages
    for fields in ({"reuse_cap": 1.1}, {"reuse_cap": -0.1}, {"reuse_min_match": 0}, {"reuse_min_match": 257}):
        with pytest.raises(SamplerError):
            resolve(fields, 4)
