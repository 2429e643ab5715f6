"""One program at work, whatever computes its rows: what it asks for, what it says, how it ends.

What the program raises ends its own request only. A run belongs to one thread at a time.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from engine.request import DecodeRequest, Delta, Finish, FinishReason, Output, TokenScore
from engine.scores import candidate_scores
from samplers.chain import Chain
from samplers.failures import CONSTRAINT_UNSATISFIABLE
from samplers.model_facts import ModelFacts
from samplers.programs.branch import DEAD_END, Branch, Limits
from samplers.programs.contract import PROGRAMS, ProgramError, Run, Task
from samplers.programs.rows import Rows
from samplers.rng import Stream

log = logging.getLogger(__name__)
_FAILED = Finish(FinishReason.ERROR, None, "internal_error", "the program failed")
_NOTHING = Finish(FinishReason.ERROR, None, CONSTRAINT_UNSATISFIABLE, "nothing satisfies what the request asks for")


@dataclass
class Turn:
    """What a program has done with its rows."""

    asked: list[Branch] = field(default_factory=list)  # it waits for the rows of these; none: it has returned
    made: list[Branch] = field(default_factory=list)
    released: list[Branch] = field(default_factory=list)  # some may have been made in this turn


class ProgramRun:
    """The generator of one request, and what it has said by now."""

    def __init__(self, request: DecodeRequest, model: ModelFacts, vocab: int) -> None:
        item = request.chain.program
        assert item is not None
        program = PROGRAMS.get(item.name)
        self.name = item.name
        # where the program chooses the tokens itself, the slot's own draw has nothing to say: argmax costs nothing
        self.chain: Chain = request.chain if program.draws else replace(request.chain, greedy=True)
        self.over = False  # the request has ended, and nothing is said of it any more
        self.computed = 0  # output tokens that went through the model; counted by whoever computes them
        self._program = program
        self._request = request
        self._vocab = vocab
        self._begun: set[int] = set()  # choices
        self._ended: set[int] = set()
        self._passes = 0
        self._live: dict[Branch, None] = {}  # in order of creation
        limits = Limits(
            request.max_tokens,
            request.min_tokens,
            request.eos_token_ids | request.stop_token_ids,
            request.stops,
            model.pieces or (),
            frozenset() if request.special_tokens_are_text else model.special_ids,
        )
        stream = Stream(request.seed, request.first_choice)
        self._task = Task(item.values, request.n, request.prompt_ids, limits, stream, model)
        self._run: Run | None = None

    def advance(self, rows: Rows | None) -> Turn:
        """Let the program go on with the rows it has been waiting for; None starts it. Raises whatever it raises."""
        try:
            with torch.inference_mode():
                if self._run is None:
                    self._run = self._program.run(self._task)
                asked = self._run.send(rows)  # type: ignore[arg-type]
        except StopIteration:
            json.dumps(self._task.report, allow_nan=False)
            return Turn()
        self._check(asked)
        made = self._task.made.copy()
        self._task.made.clear()
        self._live.update(dict.fromkeys(made))
        released = [branch for branch in self._live if branch.released]
        for branch in released:
            del self._live[branch]
        self._passes += 1
        return Turn(list(asked), made, released)

    def said(self) -> Output:
        """What the program has said about its choices since the last call."""
        output = Output()
        for shown in self._task.take():
            delta = output.delta(shown.choice)
            for token in shown.tokens:
                delta.token_ids.append(token.id)
                delta.logprobs.append(token.logprob)
                if token.score is not None:
                    delta.scores.append(token.score)
            self._begun.add(shown.choice)
            if shown.end is not None:
                self._ended.add(shown.choice)
                finish = Finish(FinishReason(shown.end.reason), shown.end.token, details=shown.details)
                delta.finish = dataclasses.replace(_NOTHING, details=shown.details) if shown.end is DEAD_END else finish
        return output

    def end(self) -> Output:
        """The program has returned, and said everything: choices it has not begun do not exist."""
        if not self._begun:
            return self.finish(_NOTHING)
        if self._begun != self._ended or self._ended != set(range(len(self._ended))):
            log.error("the program '%s' began %s and ended %s", self.name, sorted(self._begun), sorted(self._ended))
            return self.finish(_FAILED)
        self.over = True
        return Output(absent=self._request.n - len(self._ended), report=self._report(self._task.report))

    def fail(self, error: Exception) -> Output:
        """The program has raised this, and what it had said before has been taken."""
        if isinstance(error, ProgramError):
            return self.finish(Finish(FinishReason.ERROR, None, error.code, str(error), impossible=True))
        log.error("request %s: the program '%s' failed", self._request.id, self.name, exc_info=error)
        return self.finish(_FAILED)

    def finish(self, finish: Finish) -> Output:
        """End the choices that the program has not ended, and the request. Of a request that ends like that the report
        says only what is known without the program."""
        self.over = True
        left = set(range(self._request.n)) - self._ended
        return Output({choice: Delta(choice, finish=finish) for choice in left}, report=self._report({}))

    def close(self) -> None:
        """The request has ended. What the program raises over that is its own affair."""
        try:
            if self._run is not None:
                self._run.close()
        except Exception:
            log.exception("the program '%s' failed when it was closed", self.name)

    def _report(self, said: dict[str, object]) -> dict[str, object]:
        return {**said, "name": self.name, "forward_passes": self._passes, "tokens_computed": self.computed}

    def _check(self, asked: Sequence[Branch]) -> None:
        """Raises ValueError for what no row can be given of, before anything has been done for the program."""
        if not asked or len(set(asked)) < len(asked):
            raise ValueError(f"the program '{self.name}' asks for nothing, or for a branch twice")
        for branch in asked:
            known = branch in self._live or branch in self._task.made
            if not known or branch.released or branch.end is not None or len(branch) >= branch.limits.max_tokens:
                raise ValueError(f"the program '{self.name}' asks for a branch that is released or has ended")
        for branch in (*self._task.made, *self._live):
            mixed = (one for at, one in branch.mixtures.items() if at >= branch.kept)
            used = [*branch.ids[branch.kept :], *(id_ for one in mixed for id_ in one.ids)]
            if not all(isinstance(id_, int) and 0 <= id_ < self._vocab for id_ in used):
                raise ValueError(f"the program '{self.name}' pushes ids that are no tokens")


def rows_of(request: DecodeRequest, raw: Tensor, shaped: Tensor, drawn: Sequence[int]) -> Rows:
    """What a program is sent. raw, shaped: [R, V] fp32; drawn: [R] tokens, -1 where nothing could be drawn."""

    def score(raw: Tensor, shaped: Tensor, ids: Tensor) -> list[list[TokenScore]]:
        source = shaped if request.processed_logprobs else raw
        return candidate_scores(source, ids, request.logprobs or 0, request.logprob_token_ids)

    return Rows(raw, shaped, drawn, None if request.logprobs is None else score)
