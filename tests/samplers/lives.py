"""Random lives of slots: taken, drafted for, rolled back, forked, freed and taken again, against a plain reference.

The toy model's row depends on the whole prefix, so a state that mixes up its past or its neighbours is seen at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from samplers.chain import resolve
from samplers.model_facts import NO_FACTS, ModelFacts
from samplers.stack import SamplerStack

VOCABULARY, SLOTS = 7, 5


@dataclass(frozen=True)
class Life:
    """What a slot's request has been through."""

    fields: dict[str, Any]
    prompt: list[int]
    output: list[int]
    known: int = 0  # output tokens that were there already when the slot was taken
    endings: frozenset[int] = frozenset()


Reference = Callable[[Life], torch.Tensor]  # the row [V] after the stage


def model_row(prompt: list[int], output: list[int]) -> torch.Tensor:
    """The raw row [V] after these tokens."""
    seed = hash((tuple(prompt), -1, tuple(output)))  # of integers: the same in every process
    generator = np.random.default_rng(seed % 2**32)
    row = generator.normal(0, 2, VOCABULARY)
    row[generator.random(VOCABULARY) < 0.15] = -np.inf
    row[generator.integers(VOCABULARY)] = 0.0
    return torch.tensor(row, dtype=torch.float32)


def agree(given: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal masks and nearly equal numbers."""
    masks = torch.equal(given == -torch.inf, expected == -torch.inf)
    finite = expected > -torch.inf
    return masks and torch.allclose(given[finite], expected[finite].float(), rtol=1e-4, atol=1e-4)


@dataclass
class Lives:
    """A stack whose slots live at random."""

    seed: int
    reference: Reference
    fields: Callable[[random.Random], dict[str, Any]]
    facts: ModelFacts = NO_FACTS
    lives: dict[int, Life] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.stack = SamplerStack(SLOTS, VOCABULARY, torch.device("cpu"), self.facts)

    def run(self, events: int) -> None:
        for _ in range(events):
            event, slot = self.chance.random(), self.chance.randrange(SLOTS)
            if slot not in self.lives or event < 0.06:
                self.admit(slot)
            elif event < 0.1:
                self.stack.free(slot)
                del self.lives[slot]
            elif event < 0.2:
                child = (slot + self.chance.randrange(1, SLOTS)) % SLOTS
                self.stack.fork(slot, child)
                self.lives[child] = replace(self.lives[slot], output=list(self.lives[slot].output))
            elif event < 0.5:
                self.speculate()
            else:
                self.step()

    def admit(self, slot: int) -> None:
        prompt, known = self.tokens(1, 12), self.tokens(0, 6) if self.chance.random() < 0.3 else []
        endings = frozenset(self.tokens(0, 1))
        self.lives[slot] = Life(self.fields(self.chance), prompt, known, len(known), endings)
        self.stack.admit(
            slot,
            resolve(self.lives[slot].fields, VOCABULARY, self.facts),
            seed=slot,
            choice=0,
            prompt_ids=prompt,
            output_ids=list(known),
            ending_ids=endings,
        )

    def tokens(self, least: int, most: int) -> list[int]:
        alphabet = self.chance.choice([2, 3, VOCABULARY])
        return [self.chance.randrange(alphabet) for _ in range(self.chance.randint(least, most))]

    def step(self) -> None:
        """Look at some rows, then commit a token to them."""
        slots = self.some()
        self.look(slots)
        self.accept(slots, [self.draw(slot) for slot in slots])

    def speculate(self) -> None:
        """Shape along a draft, go back, then commit part of it and one token more without another look."""
        slots, depth = self.some(), self.chance.randint(0, 4)
        saved = {slot: (self.stack.snapshot(slot), list(self.lives[slot].output)) for slot in slots}
        if self.chance.random() < 0.5:
            self.look(slots)
            saved = {slot: (self.stack.snapshot(slot), list(self.lives[slot].output)) for slot in slots}
        for draft in range(2):  # two siblings: the second one is the one that is taken
            drafts: list[list[int]] = []
            self.look(slots)
            for _ in range(depth):
                drafts.append([self.draw(slot) for slot in slots])
                self.accept(slots, drafts[-1])
                self.look(slots)
            for slot in slots:
                state, output = saved[slot] if draft == 0 else saved.pop(slot)
                self.stack.restore(slot, state)
                self.lives[slot].output[:] = output
                del state
        taken = self.chance.randint(0, depth)
        for tokens in drafts[:taken]:
            self.accept(slots, tokens)
        self.accept(slots, [self.draw(slot) for slot in slots])
        self.look(slots)

    def some(self) -> list[int]:
        return self.chance.sample(sorted(self.lives), self.chance.randint(1, len(self.lives)))

    def draw(self, slot: int) -> int:
        """A token that the model's row allows, the same ones more often than not."""
        life = self.lives[slot]
        allowed = torch.nonzero(model_row(life.prompt, life.output) > -torch.inf).flatten().tolist()
        return allowed[0] if self.chance.random() < 0.6 else self.chance.choice(allowed)

    def accept(self, slots: list[int], tokens: list[int]) -> None:
        assert not self.stack.accept(np.array(slots), torch.tensor(tokens))
        for slot, token in zip(slots, tokens, strict=True):
            self.lives[slot].output.append(token)

    def look(self, slots: list[int]) -> None:
        """Every row is what the reference says."""
        lives = [self.lives[slot] for slot in slots]
        rows = torch.stack([model_row(life.prompt, life.output) for life in lives])
        before = rows.clone()
        positions = np.array([len(life.output) for life in lives])
        shaped, failures = self.stack.shape(rows, np.array(slots), positions)
        assert not failures and torch.equal(rows, before)
        for row, life in zip(shaped, lives, strict=True):
            expected = self.reference(life)
            assert agree(row, expected), (life, row, expected)
