"""Watches the stack sample and writes down what happens to the rows that are traced.

It sees the very rows and random numbers of the running chain and changes neither, so tokens are those of an untraced
run. Exists only in steps with traced rows; keeps one row per executed stage until the step's tokens are known, about
what a sort of the rows takes. Loops over traced rows, which are few.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samplers.rng import Noise, Purpose, uniform
from samplers.trace import Candidate, DrawTrace, StageTrace, TokenTrace

Indices = npt.NDArray[np.int64]
GREEDY = "greedy"


@dataclass
class _Row:
    """One traced row: its log-probabilities after each executed stage, the model's own first."""

    top: int  # candidates to list from each end of the chain
    logprobs: list[Tensor]  # each [V] fp32
    stages: list[tuple[str, tuple[float, ...]]] = field(default_factory=list)  # (name, random numbers) of each stage
    draw: str = GREEDY
    drawn_by: list[tuple[int, float]] = field(default_factory=list)  # (purpose, number)
    perturbed_by: npt.NDArray[np.float64] | None = None  # [V] numbers of a draw that has one per token


class Recorder:
    """The traced rows of one step."""

    def __init__(self, logits: Tensor, tops: Mapping[int, int]) -> None:
        """logits: [R, V] fp32, before the first stage; tops: traced row -> candidates to list."""
        index = torch.tensor(list(tops), device=logits.device)
        raw = logits[index].log_softmax(1)
        self._rows = {row: _Row(top, [own]) for (row, top), own in zip(tops.items(), raw, strict=True)}
        self._numbers: dict[int, list[tuple[int, float]]] = {}  # by row, since the last stage
        self._per_token: dict[int, npt.NDArray[np.float64]] = {}

    def noise(self, noise: Noise, members: Indices) -> Noise:
        """The same random numbers, noted down. members: the row of each of its entries."""
        self._numbers.clear()
        self._per_token.clear()
        return _NotedNoise(noise, members, self)

    def note(self, purpose: int, members: Indices, numbers: npt.NDArray[np.float64]) -> None:
        """[R] numbers, or [R, V]: one for each token. Others are nothing a trace could show."""
        if numbers.ndim not in (1, 2) or len(numbers) != len(members):
            return
        for row, number in zip(members.tolist(), numbers, strict=True):
            if row not in self._rows:
                continue
            if numbers.ndim == 1:
                self._numbers.setdefault(row, []).append((purpose, float(number)))
            else:
                self._per_token[row] = number.copy()

    def staged(self, name: str, members: Indices, shaped: Tensor) -> None:
        """A stage has run. shaped: [R, V], a row for each of `members`."""
        chosen = [at for at, row in enumerate(members.tolist()) if row in self._rows]
        if not chosen:
            return
        after = shaped[torch.tensor(chosen, device=shaped.device)].log_softmax(1)
        for at, logprobs in zip(chosen, after, strict=True):
            row = int(members[at])
            numbers = tuple(number for _, number in self._numbers.get(row, ()))
            self._rows[row].logprobs.append(logprobs)
            self._rows[row].stages.append((name, numbers))

    def drew(self, name: str, members: Indices) -> None:
        """A draw has picked tokens for these rows."""
        for member in members.tolist():
            if (row := self._rows.get(member)) is not None:
                row.draw = name
                row.drawn_by = self._numbers.get(member, [])
                row.perturbed_by = self._per_token.get(member)

    def finish(self, tokens: Tensor, processed: Tensor, failed: Mapping[int, object]) -> dict[int, TokenTrace]:
        """The traces of all rows that got a token. tokens: [R]; processed: [R, V], after the last stage."""
        drawn = tokens.tolist()
        return {
            row: _trace(traced, drawn[row], processed[row]) for row, traced in self._rows.items() if row not in failed
        }


class _NotedNoise(Noise):
    """Random numbers that a recorder hears of."""

    def __init__(self, noise: Noise, members: Indices, recorder: Recorder) -> None:
        super().__init__(noise.keys, noise.choices, noise.positions)
        self._noise, self._members, self._recorder = noise, members, recorder

    def __getitem__(self, rows: Indices) -> Noise:
        return _NotedNoise(self._noise[rows], self._members[rows], self._recorder)

    def draw_bits(self) -> npt.NDArray[np.int64]:
        bits = self._noise.draw_bits()
        self._recorder.note(Purpose.DRAW, self._members, uniform(bits))
        return bits

    def bits(self, purpose: int, lane: int = 0) -> npt.NDArray[np.int64]:
        bits = self._noise.bits(purpose, lane)
        self._recorder.note(purpose, self._members, uniform(bits))
        return bits

    def per_token(self, purpose: int, vocab: int) -> npt.NDArray[np.float64]:
        numbers = self._noise.per_token(purpose, vocab)
        self._recorder.note(purpose, self._members, numbers)
        return numbers


def _trace(row: _Row, token: int, processed: Tensor) -> TokenTrace:
    logprobs = torch.stack(row.logprobs)  # [S + 1, V]
    shown = _candidates(logprobs, row.top)
    chances = logprobs.double().exp_()
    alive = logprobs > -torch.inf
    possible = alive.sum(1).tolist()
    entropies = (-(chances * logprobs.masked_fill(~alive, 0.0)).sum(1)).clamp(min=0.0).tolist()
    removed = (chances[:-1] * (alive[:-1] & ~alive[1:])).sum(1).tolist()
    own = chances[:, token].tolist()
    listed = chances[:, shown].tolist()
    stages = []
    for at, (name, numbers) in enumerate(row.stages):
        candidates = zip(shown, listed[at], listed[at + 1], strict=True)
        stages.append(
            StageTrace(
                name,
                (possible[at], possible[at + 1]),
                removed[at],
                (entropies[at], entropies[at + 1]),
                (own[at], own[at + 1]),
                tuple(Candidate(*one) for one in candidates),
                numbers,
            )
        )
    model = tuple(zip(shown, listed[0], strict=True))
    return TokenTrace(
        token, own[0], possible[0], entropies[0], model, tuple(stages), _draw_trace(row, token, processed)
    )


def _candidates(logprobs: Tensor, top: int) -> list[int]:
    """The most probable tokens of the model's row and of the last one, then of those between, at most twice `top` in
    all; by their largest probability, ties to the lower id."""
    order = [0, len(logprobs) - 1, *range(1, len(logprobs) - 1)]
    # log-probabilities as such: the first of equals is the lowest id only in a stable sort
    ranked = logprobs[order].sort(dim=1, descending=True, stable=True)
    found: list[int] = []
    for ids, values in zip(ranked.indices[:, :top].tolist(), ranked.values[:, :top].tolist(), strict=True):
        found += [id for id, value in zip(ids, values, strict=True) if value > -np.inf and id not in found]
    found = found[: 2 * top]
    best = dict(zip(found, logprobs[:, found].amax(0).tolist(), strict=True))
    return sorted(found, key=lambda id: (-best[id], id))


def _draw_trace(row: _Row, token: int, processed: Tensor) -> DrawTrace:
    """processed: [V]."""
    if row.perturbed_by is not None:
        return DrawTrace(row.draw, (float(row.perturbed_by[token]),))
    numbers = tuple(number for _, number in row.drawn_by)
    if [purpose for purpose, _ in row.drawn_by] != [Purpose.DRAW]:
        return DrawTrace(row.draw, numbers)
    ends = processed.double().softmax(0).cumsum(0)
    low, high = (ends[token - 1].item() if token else 0.0), ends[token].item()
    return DrawTrace(row.draw, numbers, (low, high) if low <= numbers[0] < high else None)
