"""Runs the program of one request: what it asks for becomes sequences, what was computed becomes rows.

Owns the program's branches on the engine's side, each a `Sequence` with its share of the pages. Everything a program
has made ends with its request, whatever the program does. Runs in the engine thread.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace

import torch

from engine.executor import Row
from engine.pages import Pages
from engine.sequence import ActiveRequest, Sequence
from samplers.chain import Chain
from samplers.model_facts import ModelFacts
from samplers.programs.branch import Branch, Limits
from samplers.programs.contract import PROGRAMS, Run, Shown, Task
from samplers.programs.rows import Rows
from samplers.rng import Stream

log = logging.getLogger(__name__)
Gather = Callable[[list[Row]], Rows]


@dataclass
class Turn:
    """What a program has done with its rows."""

    asked: list[Sequence] = field(default_factory=list)  # it waits for the rows of these
    released: list[Sequence] = field(default_factory=list)
    ended: bool = False


class Family:
    """One program at work."""

    def __init__(self, active: ActiveRequest, model: ModelFacts, vocab: int, pages: Pages) -> None:
        request = active.request
        item = request.chain.program
        assert item is not None
        program = PROGRAMS.get(item.name)
        self.name = item.name
        # where the program chooses the tokens itself, the slot's own draw has nothing to say: argmax costs nothing
        self.chain: Chain = request.chain if program.draws else replace(request.chain, greedy=True)
        self.begun: set[int] = set()  # choices
        self.ended: set[int] = set()
        self.over = False
        self.computed = 0  # output tokens that went through the model
        self._passes = 0
        self._active = active
        self._pages = pages
        self._vocab = vocab
        self._program = program
        ending = request.eos_token_ids | request.stop_token_ids
        limits = Limits(
            request.max_tokens,
            request.min_tokens,
            ending,
            request.stops,
            model.pieces or (),
            frozenset() if request.special_tokens_are_text else model.special_ids,
        )
        stream = Stream(request.seed, request.first_choice)
        self._task = Task(item.values, request.n, request.prompt_ids, limits, stream, model)
        self._run: Run | None = None
        self._sequences: dict[Branch, Sequence] = {}
        self._asked: list[Sequence] = []
        self._rows: dict[Sequence, Row] = {}
        self._created = 0

    def take(self, row: Row) -> bool:
        """Note a row that was asked for; True when it was the last one."""
        self._rows[row.sequence] = row
        return len(self._rows) == len(self._asked)

    def keep(self, row: Row) -> None:
        """The row has to wait for others: hold on to it and not to the whole step's logits."""
        if self._rows.get(row.sequence) is row:
            row.raw, row.shaped = row.raw.clone(), row.shaped.clone()

    def advance(self, gather: Gather) -> Turn:
        """Let the program go on with the rows it has been waiting for. Raises whatever it raises."""
        turn = Turn()
        rows = gather([self._rows[one] for one in self._asked]) if self._asked else None
        self._rows.clear()
        try:
            with torch.inference_mode():
                if self._run is None:
                    self._run = self._program.run(self._task)
                asked = self._run.send(rows)  # type: ignore[arg-type]  # None starts it
        except StopIteration:
            json.dumps(self._task.report, allow_nan=False)
            turn.ended = True
        else:
            self._check(asked)
            self._follow(turn)
            turn.asked = self._asked = [self._sequences[branch] for branch in asked]
            for sequence in turn.asked:
                self._cut(sequence, len(sequence.tokens) - 1)  # a row that has been there is computed again
            self._passes += 1
        return turn

    def said(self) -> list[Shown]:
        """What the program has said about its choices since the last call."""
        said = self._task.take()
        self.begun.update(shown.choice for shown in said)
        self.ended.update(shown.choice for shown in said if shown.end is not None)
        return said

    def report(self, whole: bool) -> dict[str, object]:
        """What the response says about the whole request; of one that failed only what we know ourselves."""
        said = self._task.report if whole else {}
        return {**said, "name": self.name, "forward_passes": self._passes, "tokens_computed": self.computed}

    def close(self) -> None:
        """The request has ended. What the program raises over that is its own affair."""
        self.over = True
        self._rows.clear()
        self._asked.clear()
        try:
            if self._run is not None:
                self._run.close()
        except Exception:
            log.exception("the program '%s' failed when it was closed", self.name)

    def _check(self, asked: Many[Branch]) -> None:
        """Raises ValueError for what no row can be given of, before anything has been done for the program."""
        if not asked or len(set(asked)) < len(asked):
            raise ValueError(f"the program '{self.name}' asks for nothing, or for a branch twice")
        for branch in asked:
            known = branch in self._sequences or branch in self._task.made
            if not known or branch.released or branch.end is not None or len(branch) >= branch.limits.max_tokens:
                raise ValueError(f"the program '{self.name}' asks for a branch that is released or has ended")
        for branch in (*self._task.made, *self._sequences):
            mixed = (one for at, one in branch.mixtures.items() if at >= branch.kept)
            used = [*branch.ids[branch.kept :], *(id_ for one in mixed for id_ in one.ids)]
            if not all(isinstance(id_, int) and 0 <= id_ < self._vocab for id_ in used):
                raise ValueError(f"the program '{self.name}' pushes ids that are no tokens")

    def _follow(self, turn: Turn) -> None:
        """Give every branch the share of the pages that its forks and truncations ask for."""
        for branch in self._task.made:
            self._sequences[branch] = self._sequence(branch)
        self._task.made.clear()
        for branch, sequence in list(self._sequences.items()):
            if branch.released:
                del self._sequences[branch]
                turn.released.append(sequence)
            else:
                self._update(branch, sequence)

    def _sequence(self, branch: Branch) -> Sequence:
        prompt = list(self._active.request.prompt_ids)
        sequence = Sequence(self._active, self._created, prompt, branch.stream)
        self._created += 1
        self._active.sequences.append(sequence)
        if branch.origin is not None:  # what its origin holds is what it held when it was forked
            origin = self._sequences[branch.origin]
            length = len(prompt) + branch.kept
            sequence.tokens = origin.tokens[:length]
            if origin.branch is not None:
                sequence.computed = min(origin.computed, length)
                sequence.branch = self._pages.fork(origin.branch)
                self._pages.truncate(sequence.branch, sequence.computed)
            branch.origin = None  # its memory is its own from here on, and its ancestors need not be kept for it
        return sequence

    def _update(self, branch: Branch, sequence: Sequence) -> None:
        prompt, kept = sequence.prompt_length, sequence.prompt_length + branch.kept
        del sequence.tokens[kept:]
        self._cut(sequence, kept)
        if sequence.heard > branch.kept:
            sequence.heard = -1
        sequence.tokens += branch.ids[branch.kept :]
        sequence.mixtures = {prompt + at: mixture for at, mixture in branch.mixtures.items()}
        branch.kept = len(branch)

    def _cut(self, sequence: Sequence, length: int) -> None:
        if sequence.computed > length and sequence.branch is not None:
            sequence.computed = length
            self._pages.truncate(sequence.branch, length)
