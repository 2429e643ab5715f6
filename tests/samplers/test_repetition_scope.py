"""The repetition penalty's scope and window against the list of tokens itself."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from samplers.chain import resolve
from samplers.contract import SamplerError
from tests.samplers.lives import VOCABULARY, Life, Lives, model_row


def reference(life: Life) -> torch.Tensor:
    row, penalty = model_row(life.prompt, life.output), life.fields["repetition_penalty"]
    ids = life.prompt + life.output if life.fields["repetition_scope"] == "all" else life.output
    for token in set(ids[-life.fields["repetition_last_n"] :]):  # -0: all of them
        row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
    return row


def some_fields(chance: random.Random) -> dict[str, Any]:
    return {
        "repetition_penalty": chance.choice([1.0, 1.3, 0.8]),
        "repetition_scope": chance.choice(["all", "output"]),
        "repetition_last_n": chance.choice([0, 1, 2, 5, 30]),
        "temperature": chance.choice([0, 1]),
    }


@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_of_events_equals_the_tokens_themselves(seed: int) -> None:
    Lives(seed, reference, some_fields).run(80)


def test_ranges() -> None:
    neutral = {"repetition_penalty": 1, "repetition_scope": "output", "repetition_last_n": 64}
    assert not resolve(neutral, VOCABULARY).stages
    for fields in ({"repetition_scope": "prompt"}, {"repetition_last_n": -1}):
        with pytest.raises(SamplerError):
            resolve(fields, VOCABULARY)
