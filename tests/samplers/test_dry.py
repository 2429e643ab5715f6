"""DRY against a search over every earlier place and every length, breakers read from the text itself."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.breakers import Breakers, Pieces
from samplers.chain import resolve
from samplers.contract import SamplerError
from samplers.model_facts import ModelFacts
from samplers.stack import SamplerStack
from tests.samplers.lives import VOCABULARY, Life, Lives, model_row

PIECES = [b"a", b"b", b"ab", b"", b"\n", b"xby", "é".encode()[:1]]
FACTS = ModelFacts(PIECES, frozenset({3}))
BREAKERS = [[], ["\n"], ["ba"], ["bab", "\n"], ["aa"], ["b"]]


def broken_at(ids: list[int], breakers: list[str]) -> list[bool]:
    """Whether the text up to and with each token has a breaker that the text before the token does not have."""

    def count(text: bytes) -> int:
        needles = [breaker.encode() for breaker in breakers]
        return sum(text[i:].startswith(needle) for needle in needles for i in range(len(text)))

    texts = [b"".join(PIECES[token] for token in ids[:n]) for n in range(len(ids) + 1)]
    return [count(after) > count(before) for before, after in itertools.pairwise(texts)]


def lengths(life: Life) -> dict[int, int]:
    """L(v) for every token that has one above zero."""
    ids = life.prompt + life.output
    broken = broken_at(ids, life.fields["dry_sequence_breakers"])
    first = 0 if life.fields["dry_scope"] == "all" else len(life.prompt)
    last_n = life.fields["dry_penalty_last_n"]
    if last_n >= 0:
        first = max(first, len(ids) - last_n)
    found: dict[int, int] = {}
    for at in range(first, len(ids)):
        size = 0
        while at - size > first and ids[at - 1 - size] == ids[-1 - size]:
            if broken[at - 1 - size] or broken[len(ids) - 1 - size]:
                break
            size += 1
        if not broken[at] and ids[at] not in life.endings and ids[at] not in FACTS.special_ids:
            found[ids[at]] = max(found.get(ids[at], 0), size)
    return found


def reference(life: Life) -> torch.Tensor:
    row, fields = model_row(life.prompt, life.output).double(), life.fields
    for token, length in lengths(life).items():
        if length >= fields["dry_allowed_length"]:
            row[token] -= fields["dry_multiplier"] * fields["dry_base"] ** (length - fields["dry_allowed_length"])
    return row


def some_fields(chance: random.Random) -> dict[str, Any]:
    return {
        "dry_multiplier": chance.choice([0.0, 0.5, 0.5, 2.0]),
        "dry_base": chance.choice([1.0, 1.5]),
        "dry_allowed_length": chance.choice([1, 2, 3]),
        "dry_penalty_last_n": chance.choice([-1, -1, 0, 3, 8]),
        "dry_sequence_breakers": chance.choice(BREAKERS),
        "dry_scope": chance.choice(["all", "output"]),
        "temperature": chance.choice([0, 1]),
    }


@pytest.mark.parametrize("seed", range(10))
def test_any_sequence_of_events_equals_searching_the_history(seed: int) -> None:
    Lives(seed, reference, some_fields, FACTS).run(80)


def shaped(prompt: list[int], output: list[int], logits: torch.Tensor, **fields: Any) -> torch.Tensor:
    stack = SamplerStack(1, logits.shape[1], torch.device("cpu"), FACTS)
    chain = resolve({"dry_multiplier": 0.8, "dry_scope": "all", **fields}, logits.shape[1], FACTS)
    stack.admit(0, chain, seed=0, choice=0, prompt_ids=prompt)
    for token in output:
        stack.accept(np.array([0]), torch.tensor([token]))
    return stack.shape(logits, np.array([0]), np.array([0]))[0]


def test_neutral_values_are_not_scheduled_and_defaults_are_filled_in() -> None:
    assert not resolve({"dry_multiplier": 0, "dry_base": 3.0, "dry_sequence_breakers": []}, VOCABULARY).stages
    assert not resolve({"dry_multiplier": 1.0, "dry_penalty_last_n": 0}, VOCABULARY, FACTS).stages
    item = resolve({"sampler": "dry"}, VOCABULARY, FACTS).stages[0]
    assert item.values["dry_sequence_breakers"] == ("\n", ":", '"', "*")
    assert item.values["dry_multiplier"] == 0.8 and item.values["dry_scope"] == "output"
    assert resolve({"sampler": [item.report()]}, VOCABULARY, FACTS).stages == (item,)


@pytest.mark.parametrize(
    "fields",
    [
        {"dry_multiplier": -1}, {"dry_base": 0.9}, {"dry_allowed_length": 0}, {"dry_penalty_last_n": -2},
        {"dry_scope": "prompt"}, {"dry_sequence_breakers": "x"}, {"dry_sequence_breakers": [""]},
        {"dry_sequence_breakers": [1]}, {"dry_sequence_breakers": ["x" * 65]}, {"dry_sequence_breakers": ["x"] * 129},
        {"dry_sequence_breakers": ["\ud800"]},
    ],
)  # fmt: skip
def test_ranges(fields: dict[str, Any]) -> None:
    with pytest.raises(SamplerError):
        resolve(fields, VOCABULARY, FACTS)


def test_breakers_need_the_text_of_tokens() -> None:
    with pytest.raises(SamplerError) as caught:
        resolve({"dry_multiplier": 1}, VOCABULARY)
    assert caught.value.param == "dry_sequence_breakers"
    assert resolve({"dry_multiplier": 1, "dry_sequence_breakers": []}, VOCABULARY).stages


def test_nothing_repeated_and_a_multiplier_of_zero_are_identities() -> None:
    logits = torch.randn(1, VOCABULARY)
    assert torch.equal(shaped([0, 1], [2, 5], logits), logits)
    assert torch.equal(shaped([0, 1, 0], [1, 0, 1], logits, dry_multiplier=0.0), logits)


def test_penalties_stay_finite_and_masks_stay() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 1] = -torch.inf
    row = shaped([0] * 200 + [1] + [0] * 200, [], logits, dry_base=1e30, dry_multiplier=1e30)[0]
    assert row[1] == -torch.inf and -torch.inf < row[0] <= -1e30 and (row[2:] == 0).all()
    assert row[0] / 1e-5 > -torch.inf


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, VOCABULARY - 1), max_size=30), st.sampled_from(BREAKERS))
def test_breakers_token_by_token_equal_breakers_of_the_whole_text(ids: list[int], breakers: list[str]) -> None:
    found = Breakers(breakers, Pieces(PIECES, VOCABULARY), VOCABULARY)
    expected = broken_at(ids, breakers)
    assert found.ends(ids).tolist() == expected
    tails, flags = found.tail([])[None], []
    for n, token in enumerate(ids):
        assert tails[0].tolist() == found.tail(ids[:n]).tolist() or not found.reach
        broken, tails = found.follow(tails, np.array([token]))
        flags.append(bool(broken[0]))
    assert flags == expected


def test_sets_of_breakers_come_and_go() -> None:
    stack = SamplerStack(2, VOCABULARY, torch.device("cpu"), FACTS)
    for turn in range(12):
        fields = {"dry_multiplier": 1.0, "dry_sequence_breakers": [chr(ord("A") + turn), "\n"], "dry_scope": "all"}
        stack.admit(turn % 2, resolve(fields, VOCABULARY, FACTS), seed=0, choice=0, prompt_ids=[0, 1, 2, 0, 1, 4])
        stack.accept(np.array([turn % 2]), torch.tensor([0]))
        stack.accept(np.array([turn % 2]), torch.tensor([1]))
        row = stack.shape(torch.zeros(1, VOCABULARY), np.array([turn % 2]), np.array([2]))[0][0]
        assert row.tolist() == [0, 0, -1, 0, 0, 0, 0]  # 4, which ends repetitions, would follow as well
