"""What is being checked: a sampler at some values over one vocabulary, and how to set it going."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from samplers.chain import INTERNAL
from samplers.contract import Admission, Draw, Rows, Stage
from samplers.model_facts import ModelFacts
from samplers.rng import Stream
from samplers.testing.bench import Bench
from samplers.testing.rows import KINDS, history, random_rows
from samplers.testing.world import World

Given = Mapping[str, Any] | Callable[[list[int]], Mapping[str, Any]]
Reference = Callable[[Tensor, Admission, Rows], Any]
STEPS = 3  # tokens that every slot has generated before it is looked at
MIN_TOKENS = 4
_FEW = 5  # rows of a large vocabulary
_FOR_LARGE = {"pure", "numbers", "masked", "keeps_one", "spoiled", "renamed", "appended", "batch", "reference"}


@dataclass(frozen=True)
class Subject:
    """Row and slot i stand for values i modulo their number and, with another period, for one kind of row."""

    sampler: Stage | Draw
    given: Sequence[Given]
    vocab: int  # tokens
    model: Callable[[World], ModelFacts]
    reference: Reference | None
    seed: int
    _facts: dict[int, tuple[World, ModelFacts]] = field(default_factory=dict, repr=False)  # by the world's identity
    _rows: dict[int, Tensor] = field(default_factory=dict, repr=False)  # by salt

    def applies(self, check: str, *, large: bool) -> bool:
        if check == "reference" and self.reference is None:
            return False
        return not large or check in _FOR_LARGE

    @property
    def count(self) -> int:
        """Rows that show every pair of values and kind."""
        if self.vocab >= 10_000:
            return _FEW
        periods = len(self.given) if len(self.given) % 3 else len(self.given) + 1  # no common factor with KINDS
        return max(KINDS * periods, 2 * KINDS)

    def values_at(self, slot: int, world: World) -> dict[str, Any]:
        """Checked and parsed values of a slot, in ids."""
        periods = len(self.given) if len(self.given) % 3 else len(self.given) + 1
        given = self.given[slot % periods % len(self.given)]
        raw = dict(given(world.ids.tolist()) if callable(given) else given)
        params = self.sampler.params
        values = {param.name: param.check(raw.pop(param.name, param.when_named), param.name) for param in params}
        for name in getattr(self.sampler, "structured", ()):
            if name in raw or name in structured_defaults(self.sampler):
                raw.setdefault(name, structured_defaults(self.sampler).get(name))
                values[name] = self.sampler.parse(name, raw.pop(name), name, world.vocab)  # type: ignore[union-attr]
        assert not raw, f"the given values hold unknown fields: {', '.join(raw)}"
        self.sampler.check(values, self.facts(world))
        return values

    def plain(self) -> World:
        return World.plain(self.vocab)

    def facts(self, world: World) -> ModelFacts:
        """What the sampler may know in this world."""
        if id(world) not in self._facts:
            self._facts[id(world)] = world, self.model(world)
        return self._facts[id(world)][1]

    def rows(self, salt: int) -> Tensor:
        """[count, tokens]; each salt gives others. Not to be written to."""
        if salt not in self._rows:
            generator = torch.Generator().manual_seed(self.seed * 1000 + salt)
            self._rows[salt] = random_rows(self.vocab, self.count, generator)
        return self._rows[salt]

    def fresh(self, world: World | None = None, slots: int | None = None) -> Bench:
        """A bench without owners of its slots."""
        world = world or self.plain()
        return Bench(self.sampler, world, self.facts(world), slots or self.count)

    def admit(self, bench: Bench, slot: int, owner: int | None = None, output: Sequence[int] = ()) -> None:
        """Give a slot to an owner, by default to the one of its own number."""
        owner = slot if owner is None else owner
        generator = torch.Generator().manual_seed(self.seed * 1000 + 500 + owner)
        prompt = history(self.vocab, 6, generator)
        values = self.values_at(owner, bench.world)
        least = MIN_TOKENS if self.sampler.name in INTERNAL else 0
        bench.admit(slot, values, prompt, output, Stream(owner * 77 + 1, owner % 3), [1], least)

    def started(
        self, world: World | None = None, tokens: Sequence[Sequence[int]] | None = None, slots: int | None = None
    ) -> tuple[Bench, list[list[int]]]:
        """(a bench whose first `count` slots have generated `STEPS` tokens, the tokens by step). `tokens`: these."""
        bench = self.fresh(world, slots)
        everyone = list(range(self.count))
        for slot in everyone:
            self.admit(bench, slot)
        chosen = []
        for step in range(STEPS):
            chosen.append(bench.advance(everyone, self.rows(step), None if tokens is None else tokens[step]))
        return bench, chosen

    def say(self, row: int) -> str:
        """What a row stands for."""
        values = self.values_at(row, self.plain())
        text = ", ".join(f"{name}={value!r}" for name, value in values.items())
        return f"row {row} ({text[:200]})" if text else f"row {row}"

    def same(self, one: Tensor, other: Tensor, what: str) -> None:
        """Asserts equality of every bit."""
        differs = (one != other).reshape(len(one), -1).any(1)
        if bool(differs.any()):
            row = int(differs.nonzero()[0])
            raise AssertionError(f"{what}: {self.say(row)}: {difference(one[row], other[row])}")

    def alike(self, one: Tensor, other: Tensor, what: str, tolerance: float = 1e-4) -> None:
        """Asserts equality of what is masked, and of everything else but for rounding."""
        kept = one > -torch.inf
        wrong = kept != (other > -torch.inf)
        both = kept & (other > -torch.inf)
        near = (one - other).abs() <= tolerance * (1 + other.abs())
        wrong |= both & ~near
        if bool(wrong.any()):
            row = int(wrong.any(1).nonzero()[0])
            raise AssertionError(f"{what}: {self.say(row)}: {difference(one[row], other[row], wrong[row])}")


def structured_defaults(sampler: Stage | Draw) -> Mapping[str, Any]:
    """Of the fields a request may leave out."""
    defaults: Mapping[str, Any] = getattr(sampler, "structured_defaults", {})
    return defaults


def difference(one: Tensor, other: Tensor, wrong: Tensor | None = None) -> str:
    """The first entry in which two rows differ."""
    wrong = one != other if wrong is None else wrong
    at = int(wrong.nonzero()[0])
    return f"token {at} is {one[at].item():.7g} and {other[at].item():.7g} ({int(wrong.sum())} of {len(one)} differ)"
