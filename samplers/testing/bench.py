"""One sampler with its parameters and state for a few slots, held as a stack would hold them, but alone.

Speaks of tokens: the world says which ids they have. Knows every slot's position and random stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from samplers.contract import Admission, Draw, Rows, Shape, Stage
from samplers.model_facts import ModelFacts
from samplers.parameters import SlotParameters
from samplers.rng import Noise, Stream
from samplers.testing.world import World

CPU = torch.device("cpu")


class Bench:
    """Raises whatever the sampler raises."""

    def __init__(self, sampler: Stage | Draw, world: World, facts: ModelFacts, slots: int) -> None:
        self.sampler, self.world, self.slots = sampler, world, slots
        self.is_draw = hasattr(sampler, "pick")
        self.state = sampler.new_state(Shape(slots, world.vocab, CPU, facts))
        self.parameters = SlotParameters(sampler.params, slots, CPU)
        self.positions = np.zeros(slots, np.int64)
        self.keys, self.choices = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
        self.admissions: dict[int, Admission] = {}
        # what slots were told of theirs, kept as a stack keeps it, so that who writes to it spoils it for a later call
        self._told: dict[tuple[int, ...], Mapping[str, Tensor]] = {}

    def admit(
        self,
        slot: int,
        values: Mapping[str, Any],
        prompt: Sequence[int],
        output: Sequence[int] = (),
        stream: Stream | None = None,
        endings: Sequence[int] = (),
        min_tokens: int = 0,
    ) -> None:
        """values: checked and parsed, in ids; everything else in tokens."""
        stream = Stream(slot, 0) if stream is None else stream
        ids = self.world.tokens
        admission = Admission(
            values, tuple(ids(prompt)), tuple(ids(output)), frozenset(ids(endings)), min_tokens, stream, 1
        )
        self.admissions[slot] = admission
        self.parameters.write(slot, values)
        self._told.clear()
        self.positions[slot] = len(output)
        self.keys[slot], self.choices[slot] = stream
        if self.state is not None:
            self.state.admit(slot, admission)

    def rows_of(self, slots: Sequence[int], ahead: Sequence[int] = (0,)) -> Rows:
        """What a stack says about rows of these slots, which lie so many positions ahead."""
        index = np.array(slots, np.int64)
        positions = self.positions[index] + np.array(ahead, np.int64)
        noise = Noise(self.keys[index], self.choices[index], positions)
        return Rows(torch.from_numpy(index), torch.from_numpy(positions), noise)

    def call(self, ids: Tensor, slots: Sequence[int], ahead: Sequence[int] = (0,)) -> Any:
        """The sampler's answer to rows of ids [R, vocab], as it is; the rows are its to spoil."""
        rows = self.rows_of(slots, ahead)
        params = self._told.setdefault(tuple(slots), self.parameters.gather(rows.slots))
        if self.is_draw:
            draw = cast(Draw, self.sampler)
            return draw.pick(ids, params, replace(rows, raw=ids) if draw.sees_raw else rows, self.state)
        return cast(Stage, self.sampler).shape(ids, params, rows, self.state)

    def shape(self, rows: Tensor, slots: Sequence[int]) -> Tensor:
        """Shaped rows. [R, tokens] -> [R, tokens]."""
        return self.world.back(self.call(self.world.rows(rows), slots))

    def pick(self, rows: Tensor, slots: Sequence[int], ahead: Sequence[int] = (0,)) -> Tensor:
        """Drawn tokens. [R, tokens] -> [R] int64."""
        drawn = self.call(self.world.rows(rows), slots, ahead)
        names = torch.full((self.world.vocab,), -1)
        names[self.world.ids] = torch.arange(len(self.world.ids))
        return names[drawn]

    def probe(self, rows: Tensor, slots: Sequence[int]) -> Tensor:
        """What the sampler makes of these rows: [R, tokens] of a stage, [R, 1] of a draw."""
        return self.pick(rows, slots).unsqueeze(1) if self.is_draw else self.shape(rows, slots)

    def advance(self, slots: Sequence[int], rows: Tensor, tokens: Sequence[int] | None = None) -> list[int]:
        """One step: every slot sees a row and accepts a token of it, by default one that is left. Returns them."""
        seen = self.probe(rows, slots)
        if tokens is None:
            tokens = seen.squeeze(1).tolist() if self.is_draw else _any_left(seen, rows)
        self.accept(slots, tokens)
        return list(tokens)

    def accept(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        if self.state is not None:
            self.state.accept(torch.tensor(slots), torch.tensor(self.world.tokens(tokens)))
        self.positions[list(slots)] += 1

    def snapshot(self, slot: int) -> tuple[int, Any]:
        return int(self.positions[slot]), None if self.state is None else self.state.snapshot(slot)

    def restore(self, slot: int, saved: tuple[int, Any]) -> None:
        self.positions[slot] = saved[0]
        if self.state is not None:
            self.state.restore(slot, saved[1])

    def fork(self, parent: int, child: int) -> None:
        self.parameters.copy(parent, child)
        self._told.clear()
        for array in (self.positions, self.keys, self.choices):
            array[child] = array[parent]
        if self.state is not None:
            self.state.fork(parent, child)

    def free(self, slot: int) -> None:
        if self.state is not None:
            self.state.free(slot)


def _any_left(shaped: Tensor, rows: Tensor) -> list[int]:
    """A token of each row that is left in it; a row that a mask has emptied gives one it had."""
    left = shaped > -torch.inf
    left = torch.where(left.any(1, keepdim=True), left, rows > -torch.inf)
    noise = torch.rand(rows.shape, generator=torch.Generator().manual_seed(rows.shape[1]))
    return torch.where(left, noise, -1.0).argmax(1).tolist()
