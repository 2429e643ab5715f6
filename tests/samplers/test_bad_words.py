"""Forbidden sequences against plain matching of the history, however slots come, grow and go."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from samplers.chain import resolve
from samplers.stack import SamplerStack

VOCABULARY, SLOTS = 6, 4


def forbidden(words: list[list[int]], history: list[int]) -> set[int]:
    """Straight from the definition."""
    return {word[-1] for word in words if history[len(history) - len(word) + 1 :] == word[:-1] or len(word) == 1}


def masked(stack: SamplerStack, slots: list[int]) -> list[set[int]]:
    rows, failures = stack.shape(torch.zeros(len(slots), VOCABULARY), np.array(slots), np.zeros(len(slots), np.int64))
    assert not failures
    return [set(torch.nonzero(row == -torch.inf).flatten().tolist()) for row in rows]


def admit(stack: SamplerStack, slot: int, words: list[list[int]], prompt: list[int]) -> None:
    stack.admit(slot, resolve({"bad_words_ids": words}, VOCABULARY), seed=0, choice=0, prompt_ids=prompt)


def test_a_word_longer_than_the_history_does_not_hide_a_shorter_one() -> None:
    stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
    admit(stack, 0, [[1, 4, 3, 2], [0, 1, 2, 3, 4, 5]], [1, 4, 3])
    assert masked(stack, [0]) == [{2}]
    stack.accept(np.array([0]), torch.tensor([5]))
    assert masked(stack, [0]) == [set()]


@pytest.mark.parametrize("seed", range(20))
def test_any_sequence_of_events_equals_matching_the_history(seed: int) -> None:
    chance = random.Random(seed)
    stack = SamplerStack(SLOTS, VOCABULARY, torch.device("cpu"))
    words: dict[int, list[list[int]]] = {}
    history: dict[int, list[int]] = {}
    saved: dict[int, tuple[object, list[int]]] = {}

    def some(longest: int) -> list[int]:
        return [chance.randrange(VOCABULARY) for _ in range(chance.randint(1, longest))]

    for _ in range(120):
        slot, event = chance.randrange(SLOTS), chance.random()
        if slot not in words or event < 0.1:
            words[slot], history[slot] = [some(5) for _ in range(chance.randint(1, 4))], some(6)
            admit(stack, slot, words[slot], history[slot])
            saved.pop(slot, None)
        elif event < 0.2:
            stack.free(slot)
            del words[slot], history[slot]
            saved.pop(slot, None)
        elif event < 0.3:
            child = (slot + 1) % SLOTS
            stack.fork(slot, child)
            words[child], history[child] = words[slot], list(history[slot])
            saved.pop(child, None)
        elif event < 0.4:
            saved[slot] = stack.snapshot(slot), list(history[slot])
        elif event < 0.5 and slot in saved:
            state, history[slot] = saved.pop(slot)
            stack.restore(slot, state)
        else:
            live = sorted(words)
            tokens = [chance.randrange(VOCABULARY) for _ in live]
            stack.accept(np.array(live), torch.tensor(tokens))
            for one, token in zip(live, tokens, strict=True):
                history[one].append(token)
        live = [chance.choice(sorted(words)) for _ in range(5)] if words else []  # a slot may occur twice
        if live:
            assert masked(stack, live) == [forbidden(words[one], history[one]) for one in live]
