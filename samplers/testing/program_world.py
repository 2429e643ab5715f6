"""Runs programs over a law that is a function: no engine, no memory, every row counted. For tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from samplers.model_facts import NO_FACTS, ModelFacts
from samplers.programs.branch import Branch, End, Limits, Mixture, Token
from samplers.programs.contract import Program, Task
from samplers.programs.rows import Rows
from samplers.quantise import pick, quantise
from samplers.rng import Noise, Purpose, Stream

Entry = int | Mixture
Law = Callable[[tuple[Entry, ...]], Sequence[float]]  # output so far -> logits [V]; -inf: impossible
Stages = Callable[[tuple[int, ...], list[float]], Sequence[float]]
MOST_STEPS = 100_000


@dataclass
class Choice:
    """One finished choice."""

    tokens: list[Token] = field(default_factory=list)
    end: End | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token.id for token in self.tokens)


@dataclass
class Outcome:
    """What a program did."""

    choices: dict[int, Choice] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    passes: int = 0  # forward passes
    computed: int = 0  # output tokens that went through the model, those computed twice counted twice
    longest: int = 0  # tokens of the longest branch that was computed
    live: list[int] = field(default_factory=list)  # branches not released, by pass

    @property
    def texts(self) -> list[tuple[int, ...]]:
        """The choices' tokens, in order."""
        return [self.choices[i].ids for i in sorted(self.choices)]


def with_defaults(program: Program, values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of an item that names only `values`."""
    return {**program.structured_defaults, **{param.name: param.when_named for param in program.params}, **values}


def decode(program: Program, law: Law, **request: Any) -> Outcome:
    """Run a program to its end; the request is described at `Decoding`."""
    decoding = Decoding(program, law, **request)
    while decoding.step():
        assert decoding.outcome.passes < MOST_STEPS, f"no end after {MOST_STEPS} passes"
    return decoding.outcome


class Decoding:
    """One request on its way, a forward pass at a time."""

    def __init__(
        self,
        program: Program,
        law: Law,
        *,
        n: int,
        max_tokens: int,
        values: Mapping[str, Any] | None = None,
        ending_ids: Sequence[int] = (),
        min_tokens: int = 0,
        stages: Stages | None = None,
        prompt: Sequence[int] = (0,),
        seed: int = 0,
        stops: Sequence[bytes] = (),
        model: ModelFacts = NO_FACTS,
    ) -> None:
        """`stages`: (output so far, logits) -> logits, in place of a chain; draws are `iid`."""
        ending = frozenset(ending_ids)
        self.outcome = Outcome()
        self._limits = Limits(max_tokens, min_tokens, ending, tuple(stops), model.pieces or (), model.special_ids)
        self._task = Task(with_defaults(program, values or {}), n, tuple(prompt), self._limits, Stream(seed, 0), model)
        self._law = law
        self._stages = stages
        self._memory: dict[Branch, int] = {}  # output tokens that have been computed; -1: not even the prompt
        self._run = program.run(self._task)
        self._rows: Rows | None = None

    def step(self) -> bool:
        """Take what the program says and answer what it asks. False: it has returned."""
        task, outcome, memory = self._task, self.outcome, self._memory
        try:
            asked = next(self._run) if self._rows is None else self._run.send(self._rows)
        except StopIteration:
            _take(task, outcome)
            outcome.report = task.report
            details = [choice.details for choice in outcome.choices.values()]
            json.dumps([outcome.report, details], allow_nan=False)
            return False
        _take(task, outcome)
        for branch in task.made:
            memory[branch] = -1 if branch.origin is None else min(memory[branch.origin], branch.kept)
        task.made.clear()
        assert asked, "a program that asks for nothing never ends"
        assert len(set(map(id, asked))) == len(asked), "one branch, one row"
        for branch in asked:
            assert not branch.released and branch.end is None, "nothing follows the end of a text"
            have = min(memory[branch], branch.kept)
            outcome.computed += max(1, len(branch) - have) if have >= 0 else len(branch)
            outcome.longest = max(outcome.longest, len(branch))
            memory[branch] = branch.kept = len(branch)
        self._rows = _answer(asked, self._law, self._stages, self._limits)
        outcome.passes += 1
        outcome.live.append(sum(not branch.released for branch in memory))
        return True

    def close(self) -> None:
        """The client has gone away."""
        self._run.close()


def _take(task: Task, outcome: Outcome) -> None:
    for shown in task.take():
        choice = outcome.choices.setdefault(shown.choice, Choice())
        assert choice.end is None, "a choice ends once"
        choice.tokens += shown.tokens
        choice.end, choice.details = shown.end, choice.details | shown.details


def _answer(asked: Sequence[Branch], law: Law, stages: Stages | None, limits: Limits) -> Rows:
    raw, shaped = [], []
    for branch in asked:
        entries = tuple(branch.mixtures.get(at, token) for at, token in enumerate(branch.ids))
        row = list(map(float, law(entries)))
        raw.append(row)
        if stages is not None:
            row = list(map(float, stages(tuple(branch.ids), row)))
        if len(branch) < limits.min_tokens:
            row = [-np.inf if token in limits.ending_ids else value for token, value in enumerate(row)]
        shaped.append(row)
    final = np.array(shaped)
    drawn = [-1] * len(asked)
    for at, branch in enumerate(asked):
        if np.isfinite(final[at]).any():
            key, choice = branch.stream
            noise = Noise(np.array([key]), np.array([choice]), np.array([len(branch)]))
            drawn[at] = int(pick(quantise(final[at : at + 1]), noise.bits(Purpose.DRAW))[0])
    return Rows(torch.tensor(raw, dtype=torch.float32), torch.tensor(final, dtype=torch.float32), drawn)
