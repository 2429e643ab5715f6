"""The loop's dealings with requests that programs decode: rows to them, choices from them, and their end.

A program that raises ends its own request only. Owned by the engine thread.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

from engine.executor import Executor, Row
from engine.family import Family
from engine.outbox import Outbox
from engine.request import Finish, FinishReason
from engine.scheduler import Scheduler
from engine.sequence import ActiveRequest, Sequence
from samplers.failures import CONSTRAINT_UNSATISFIABLE
from samplers.programs.branch import DEAD_END
from samplers.programs.contract import ProgramError

log = logging.getLogger(__name__)
_FAILED = Finish(FinishReason.ERROR, None, "internal_error", "the program failed")
_NOTHING = Finish(FinishReason.ERROR, None, CONSTRAINT_UNSATISFIABLE, "nothing satisfies what the request asks for")


class Programs:
    """Every program at work."""

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        outbox: Outbox,
        release: Callable[[Sequence], None],
        end: Callable[[ActiveRequest], None],
    ) -> None:
        """`release` gives back what a branch holds; `end` ends a request whose branches hold nothing."""
        self._executor = executor
        self._scheduler = scheduler
        self._outbox = outbox
        self._release = release
        self._end = end
        self.generated_tokens = 0

    def start(self, active: ActiveRequest) -> None:
        """Begin a request's program, which makes its sequences."""
        active.family = Family(active, self._executor.facts, self._executor.vocab_size, self._scheduler.pages)
        self._advance(active, active.family)

    def answer(self, rows: list[Row]) -> None:
        """Hand a step's rows to the programs that asked for them; those that have all of theirs go on."""
        for row in rows:
            self._scheduler.park(row.sequence)
        for row in rows:
            family, failure = row.sequence.active.family, row.failure
            assert family is not None
            if family.over:
                continue  # another row of this step has ended it
            if failure is not None and failure.code != CONSTRAINT_UNSATISFIABLE:  # an empty row is no fault
                self.finish(row.sequence.active, Finish(FinishReason.ERROR, None, failure.code, failure.message))
            elif family.take(row):
                self._advance(row.sequence.active, family)
        for row in rows:
            if (family := row.sequence.active.family) is not None:
                family.keep(row)

    def finish(self, active: ActiveRequest, finish: Finish) -> None:
        """End the choices that the program has not ended, and the request; harmless when repeated."""
        family = active.family
        assert family is not None
        if family.over:
            return
        for choice in set(range(active.request.n)) - family.ended:
            self._outbox.delta(active, choice).finish = finish
        self._close(active, family, whole=False)

    def _advance(self, active: ActiveRequest, family: Family) -> None:
        """Let a program use its rows, book what it says and queue what it asks for."""
        try:
            turn = family.advance(lambda rows: self._executor.gather(active.request, rows))
        except ProgramError as error:
            self._tell(active, family)
            self.finish(active, Finish(FinishReason.ERROR, None, error.code, str(error), impossible=True))
            return
        except Exception:
            log.exception("request %s: the program '%s' failed", active.request.id, family.name)
            self._tell(active, family)
            self.finish(active, _FAILED)
            return
        self._tell(active, family)
        for sequence in turn.released:
            self._release(sequence)
            active.sequences.remove(sequence)
        for sequence in turn.asked:
            self._scheduler.ask(sequence)
        if turn.ended:
            self._ended(active, family)

    def _tell(self, active: ActiveRequest, family: Family) -> None:
        """Pass on what the program has said about its choices."""
        for shown in family.said():
            delta = self._outbox.delta(active, shown.choice)
            for token in shown.tokens:
                delta.token_ids.append(token.id)
                delta.logprobs.append(token.logprob)
                if token.score is not None:
                    delta.scores.append(token.score)
            self.generated_tokens += len(shown.tokens)
            if shown.end is DEAD_END:
                delta.finish = dataclasses.replace(_NOTHING, details=shown.details)
            elif shown.end is not None:
                delta.finish = Finish(FinishReason(shown.end.reason), shown.end.token, details=shown.details)

    def _ended(self, active: ActiveRequest, family: Family) -> None:
        """The program has returned: choices it has not begun do not exist."""
        if not family.begun:
            self.finish(active, _NOTHING)
        elif family.begun != family.ended or family.ended != set(range(len(family.ended))):
            log.error("the program '%s' began %s and ended %s", family.name, sorted(family.begun), sorted(family.ended))
            self.finish(active, _FAILED)
        else:
            self._outbox.output(active).absent = active.request.n - len(family.ended)
            self._close(active, family, whole=True)

    def _close(self, active: ActiveRequest, family: Family, whole: bool) -> None:
        self._outbox.output(active).report = family.report(whole)
        for sequence in active.sequences:
            self._release(sequence)
        family.close()
        self._end(active)
