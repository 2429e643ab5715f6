"""No-repeat n-gram against transformers and against a search of the whole history."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import NoRepeatNGramLogitsProcessor

from samplers.chain import resolve
from samplers.contract import SamplerError
from samplers.stack import SamplerStack
from tests.samplers.lives import VOCABULARY, Life, Lives, model_row


def reference(life: Life) -> torch.Tensor:
    """Every n-gram of the scope that begins like its last N - 1 tokens."""
    row, size = model_row(life.prompt, life.output), life.fields["no_repeat_ngram_size"]
    ids = life.output if life.fields.get("ngram_scope") != "all" else life.prompt + life.output
    for start in range(len(ids) - size + 1):
        if size and ids[start : start + size - 1] == ids[len(ids) - size + 1 :]:
            row[ids[start + size - 1]] = -torch.inf
    return row


def some_fields(chance: random.Random) -> dict[str, Any]:
    size = chance.choice([0, 1, 2, 2, 3, 4])
    return {
        "no_repeat_ngram_size": size,
        "temperature": chance.choice([0, 1]),
        "ngram_scope": chance.choice(["all", "output"]),
    }


@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_of_events_equals_searching_the_history(seed: int) -> None:
    Lives(seed, reference, some_fields).run(80)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 40))
def test_transformers_agrees(ids: list[int], size: int, prompt: int) -> None:
    logits = torch.randn(1, 6, generator=torch.Generator().manual_seed(1))
    logits[0, 2] = -torch.inf
    stack = SamplerStack(1, 6, torch.device("cpu"))
    chain = resolve({"no_repeat_ngram_size": size, "ngram_scope": "all"}, 6)
    prompt = min(prompt, len(ids))
    stack.admit(0, chain, seed=0, choice=0, prompt_ids=ids[:prompt])
    for token in ids[prompt:]:
        stack.accept(np.array([0]), torch.tensor([token]))
    expected = NoRepeatNGramLogitsProcessor(size)(torch.tensor([ids]), logits.clone())
    assert torch.equal(stack.shape(logits, np.array([0]), np.array([0]))[0], expected)


def test_neutral_is_not_scheduled_and_ranges_are_checked() -> None:
    assert not resolve({"no_repeat_ngram_size": 0, "ngram_scope": "all"}, 9).stages
    assert resolve({"sampler": "no_repeat_ngram"}, 9).stages[0].values == {
        "no_repeat_ngram_size": 3,
        "ngram_scope": "output",
    }
    for fields in ({"no_repeat_ngram_size": -1}, {"no_repeat_ngram_size": 1025}, {"ngram_scope": "prompt"}):
        with pytest.raises(SamplerError):
            resolve(fields, 9)


def test_a_row_that_it_empties_names_the_masks() -> None:
    stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
    fields = {"no_repeat_ngram_size": 1, "temperature": 0}
    stack.admit(0, resolve(fields, VOCABULARY), seed=0, choice=0, prompt_ids=[1], output_ids=list(range(VOCABULARY)))
    failures = stack.sample(torch.zeros(1, VOCABULARY), np.array([0]), np.array([VOCABULARY])).failures
    assert failures[0][0] == "constraint_unsatisfiable"
