"""Adaptive-p: replayed from its formula; it leaves masks alone and draws near its target."""

from __future__ import annotations

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


def reference(life: Life) -> torch.Tensor:
    """With the two running sums, as they are described."""
    target, decay = life.fields["adaptive_p"], life.fields["adaptive_decay"]
    total, weight, out = target / (1 - decay), 1 / (1 - decay), torch.empty(0)
    for end in range(life.known, len(life.output) + 1):
        row = model_row(life.prompt, life.output[:end]).double()
        p = row.softmax(0)
        aim = min(max(2 * target - total / weight, 0.0), 1.0)
        distance = (p - aim).abs() / 0.3
        out = torch.where(row > -torch.inf, 5 - 10 * distance**2 / (1 + distance), row) if target else row
        if end < len(life.output) and p[life.output[end]] > 0:
            total, weight = p[life.output[end]].item() + decay * total, 1 + decay * weight
    return out


def some_fields(chance: random.Random) -> dict[str, Any]:
    return {"adaptive_p": chance.choice([0, 0.2, 0.7]), "adaptive_decay": chance.choice([0.0, 0.5, 0.9])}


@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_of_events_equals_a_replay(seed: int) -> None:
    Lives(seed, reference, some_fields).run(60)


def test_drawn_probabilities_average_near_the_target() -> None:
    row = torch.tensor([[0.5, 0.25, 0.12, 0.06, 0.04, 0.02, 0.01]]).log()
    means = []
    for target in (0.1, 0.3):
        stack = SamplerStack(1, 7, torch.device("cpu"))
        stack.admit(0, resolve({"adaptive_p": target}, 7), seed=3, choice=0, prompt_ids=[0])
        drawn = []
        for step in range(800):
            tokens = stack.sample(row, np.array([0]), np.array([step])).tokens
            stack.accept(np.array([0]), tokens)
            drawn.append(row.exp()[0, tokens[0]].item())
        means.append(np.mean(drawn))
    assert means[0] < means[1] - 0.05 and abs(means[1] - 0.3) < 0.1


def test_a_truncation_before_it_keeps_the_tail_of_a_large_vocabulary_out() -> None:
    vocab = 200_000
    row = torch.randn(1, vocab, generator=torch.Generator().manual_seed(1))
    row[0, :3] = torch.tensor([16.0, 15.0, 14.0])

    def of_the_first_three(**fields: float) -> float:
        stack = SamplerStack(1, vocab, torch.device("cpu"))
        stack.admit(0, resolve({"adaptive_p": 0.5, **fields}, vocab), seed=0, choice=0, prompt_ids=[0])
        shaped, failures = stack.shape(row, np.array([0]), np.array([0]))
        assert not failures
        return float(shaped[0].softmax(0)[:3].sum())

    assert of_the_first_three() < 0.1
    for fields in ({"min_p": 0.05}, {"top_k": 3}, {"epsilon_cutoff": 0.01, "temperature": 0.9}):
        assert of_the_first_three(**fields) == pytest.approx(1)


def test_a_token_whose_probability_underflows_moves_the_average() -> None:
    stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
    stack.admit(0, resolve({"adaptive_p": 0.3, "adaptive_decay": 0.5}, VOCABULARY), seed=1, choice=0, prompt_ids=[0])
    sharp = torch.tensor([[200.0] + [0.0] * (VOCABULARY - 1)])
    flat = torch.zeros(1, VOCABULARY)
    before = stack.shape(flat, np.array([0]), np.array([0]))[0]
    stack.shape(sharp, np.array([0]), np.array([0]))
    stack.accept(np.array([0]), torch.tensor([5]))
    after = stack.shape(flat, np.array([0]), np.array([1]))[0]
    aims = [0.3, 0.45]  # 0.6 less the average, which has halved
    x = [abs(1 / VOCABULARY - aim) / 0.3 for aim in aims]
    expected = [5 - 10 * d**2 / (1 + d) for d in x]
    assert [row[0, 0].item() for row in (before, after)] == pytest.approx(expected, rel=1e-4)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.floats(-30, 30, width=32), st.just(-torch.inf)), min_size=1, max_size=9))
def test_masks_stay_and_shifts_change_nothing(row: list[float]) -> None:
    if max(row) == -torch.inf:
        return
    stack = SamplerStack(1, len(row), torch.device("cpu"))
    stack.admit(0, resolve({"adaptive_p": 0.5}, len(row)), seed=0, choice=0, prompt_ids=[0])
    logits = torch.tensor([row])
    shaped, failures = stack.shape(logits, np.array([0]), np.array([0]))
    moved, _ = stack.shape(logits + 3, np.array([0]), np.array([0]))
    assert not failures and torch.equal(shaped > -torch.inf, logits > -torch.inf)
    assert torch.allclose(shaped, moved, atol=1e-3)


def test_conflicts_ranges_and_greedy() -> None:
    assert not resolve({"adaptive_p": 0, "adaptive_decay": 0.5}, VOCABULARY).stages
    assert not resolve({"adaptive_p": 0.5, "temperature": 0}, VOCABULARY).stages
    assert resolve({"sampler": "adaptive_p"}, VOCABULARY).stages[0].values == {"adaptive_p": 0.5, "adaptive_decay": 0.9}
    bad: list[dict[str, Any]] = [
        {"adaptive_p": 1.0}, {"adaptive_p": -0.1}, {"adaptive_decay": 1.0}, {"xtc_probability": 0.5},
        {"mirostat_tau": 5.0}, {"smoothing_factor": 0.5}, {"eta_cutoff": 0.1},
    ]  # fmt: skip
    for fields in bad:
        with pytest.raises(SamplerError):
            resolve({"adaptive_p": 0.5, **fields}, VOCABULARY)
