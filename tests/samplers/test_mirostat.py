"""Mirostat v2: replayed from its formula; its mean surprise comes to tau."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from samplers.chain import resolve
from samplers.contract import SamplerError
from samplers.stack import SamplerStack
from tests.samplers.lives import VOCABULARY, Life, Lives, model_row


def reference(life: Life) -> torch.Tensor:
    """mu from 2 tau on through every known token."""
    fields = life.fields
    tau, eta = fields["mirostat_tau"], fields["mirostat_eta"]
    mu, out = 2 * tau, torch.empty(0)
    for end in range(life.known, len(life.output) + 1):
        row = model_row(life.prompt, life.output[:end]).double()
        surprise = -row.log_softmax(0) / math.log(2)
        kept = (surprise <= mu) | (row == row.max())
        out = row.masked_fill(~kept, -torch.inf)
        if not tau:
            out = row
        if end < len(life.output):
            renormalised = fields["mirostat_surprise"] == "renormalised"
            inside = torch.where(kept, row, -torch.inf).logsumexp(0) if renormalised else row.logsumexp(0)
            drawn = ((inside - row[life.output[end]]) / math.log(2)).item()
            if math.isfinite(drawn):
                mu -= eta * (drawn - tau)
    return out


def some_fields(chance: random.Random) -> dict[str, Any]:
    return {
        "mirostat_tau": chance.choice([0, 0.7, 1.3]),
        "mirostat_eta": chance.choice([0.1, 0.9]),
        "mirostat_surprise": chance.choice(["original", "renormalised"]),
    }


@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_of_events_equals_a_replay(seed: int) -> None:
    Lives(seed, reference, some_fields).run(60)


def test_a_forced_token_that_was_masked_leaves_mu_alone() -> None:
    stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
    stack.admit(0, resolve({"mirostat_tau": 1.0}, VOCABULARY), seed=1, choice=0, prompt_ids=[0])
    row = torch.arange(VOCABULARY).float()[None]
    row[0, 0] = -torch.inf
    before = stack.shape(row, np.array([0]), np.array([0]))[0]
    stack.accept(np.array([0]), torch.tensor([0]))
    assert torch.equal(stack.shape(row, np.array([0]), np.array([1]))[0], before)


@pytest.mark.parametrize("tau", [4.5, 6.0])
def test_mean_surprise_comes_to_tau(tau: float) -> None:
    vocab, steps = 200, 600
    row = torch.randn(1, vocab, generator=torch.Generator().manual_seed(0))  # 7 bits of entropy
    surprise = -row[0].log_softmax(0) / math.log(2)
    stack = SamplerStack(1, vocab, torch.device("cpu"))
    stack.admit(0, resolve({"mirostat_tau": tau}, vocab), seed=1, choice=0, prompt_ids=[0])
    drawn = []
    for step in range(steps):
        tokens = stack.sample(row, np.array([0]), np.array([step])).tokens
        stack.accept(np.array([0]), tokens)
        drawn.append(surprise[tokens[0]].item())
    # mu is bounded, so the mean differs from tau by at most (mu_0 - mu_n) / (eta n), which vanishes
    assert abs(np.mean(drawn) - tau) < 0.1


def test_greedy_is_left_alone_and_the_most_probable_token_is_kept() -> None:
    assert not resolve({"mirostat_tau": 5, "temperature": 0}, VOCABULARY).stages
    stack = SamplerStack(1, 4, torch.device("cpu"))
    stack.admit(0, resolve({"mirostat_tau": 0.01}, 4), seed=0, choice=0, prompt_ids=[0])
    shaped, _ = stack.shape(torch.tensor([[1.0, 2.0, 2.0, -torch.inf]]), np.array([0]), np.array([0]))
    assert shaped.tolist() == [[-torch.inf, 2.0, 2.0, -torch.inf]]


def test_conflicts_and_ranges() -> None:
    assert not resolve({"mirostat_tau": 0, "mirostat_eta": 0.5}, VOCABULARY).stages
    assert resolve({"mirostat_tau": 5, "top_p": 1.0, "top_k": 0, "temperature": 0.7}, VOCABULARY).stages
    bad: list[dict[str, Any]] = [
        {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {"typical_p": 0.9}, {"eta_cutoff": 0.1}, {"top_n_sigma": 1.0},
        {"adaptive_p": 0.4}, {"mirostat_eta": 0}, {"mirostat_eta": 1.1}, {"mirostat_surprise": "other"},
        {"mirostat_tau": -1},
    ]  # fmt: skip
    for fields in bad:
        with pytest.raises(SamplerError):
            resolve({"mirostat_tau": 5, **fields}, VOCABULARY)
