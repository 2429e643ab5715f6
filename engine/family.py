"""Branches of a program as sequences: what it asks for becomes tokens to compute, what was computed becomes rows.

Everything a program has made ends with its request, whatever the program does. Runs in the engine thread.
"""

from __future__ import annotations

import torch

from engine.executor import Row
from engine.pages import Pages
from engine.program_run import ProgramRun, Turn, rows_of
from engine.sequence import ActiveRequest, Sequence
from samplers.model_facts import ModelFacts
from samplers.programs.branch import Branch
from samplers.programs.rows import Rows


class Family:
    """The program of one request, and for each of its branches a `Sequence` with its share of the pages."""

    def __init__(self, active: ActiveRequest, model: ModelFacts, vocab: int, pages: Pages) -> None:
        self.run = ProgramRun(active.request, model, vocab)
        self.asked: list[Sequence] = []  # the program waits for the rows of these
        self.released: list[Sequence] = []  # in the last turn
        self._active = active
        self._pages = pages
        self._sequences: dict[Branch, Sequence] = {}
        self._rows: dict[Sequence, Row] = {}
        self._created = 0

    def take(self, row: Row) -> bool:
        """Note a row that was asked for; True when it was the last one."""
        self._rows[row.sequence] = row
        return len(self._rows) == len(self.asked)

    def keep(self, row: Row) -> None:
        """The row has to wait for others: hold on to it and not to the whole step's logits."""
        if self._rows.get(row.sequence) is row:
            row.raw, row.shaped = row.raw.clone(), row.shaped.clone()

    def advance(self) -> None:
        """Let the program go on with the rows it has been waiting for. Raises whatever it raises."""
        self._follow(self.run.advance(self._gather()))

    def close(self) -> None:
        """The request has ended."""
        self._rows.clear()
        self.asked, self.released = [], []
        self.run.close()

    @torch.inference_mode()
    def _gather(self) -> Rows | None:
        """The rows that were asked for in one piece, in that order; None before the first ones."""
        rows = [self._rows[one] for one in self.asked]
        self._rows.clear()
        if not rows:
            return None
        raw, shaped = torch.stack([row.raw for row in rows]), torch.stack([row.shaped for row in rows])
        drawn = [-1 if row.failure is not None else row.drawn for row in rows]
        return rows_of(self._active.request, raw, shaped, drawn)

    def _follow(self, turn: Turn) -> None:
        """Give every branch the share of the pages that its forks and truncations ask for."""
        for branch in turn.made:
            self._sequences[branch] = self._sequence(branch)
        self.released = [self._sequences.pop(branch) for branch in turn.released]
        for branch, sequence in self._sequences.items() if turn.asked else ():
            self._update(branch, sequence)
        self.asked = [self._sequences[branch] for branch in turn.asked]
        for sequence in self.asked:
            self._cut(sequence, len(sequence.tokens) - 1)  # a row that has been there is computed again

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
