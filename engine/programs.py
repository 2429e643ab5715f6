"""The loop's dealings with requests that programs decode: rows to them, choices from them, and their end.

A program that raises ends its own request only. Owned by the engine thread.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.executor import Executor, Row
from engine.family import Family
from engine.outbox import Outbox
from engine.request import Finish, FinishReason, Output
from engine.scheduler import Scheduler
from engine.sequence import ActiveRequest, Sequence
from samplers.failures import CONSTRAINT_UNSATISFIABLE


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
            if family.run.over:
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
        if not family.run.over:
            self._close(active, family, family.run.finish(finish))

    def _advance(self, active: ActiveRequest, family: Family) -> None:
        """Let a program use its rows, book what it says and queue what it asks for."""
        try:
            family.advance()
        except Exception as error:
            self._book(active, family)
            self._close(active, family, family.run.fail(error))
            return
        self._book(active, family)
        for sequence in family.released:
            self._release(sequence)
            active.sequences.remove(sequence)
        for sequence in family.asked:
            self._scheduler.ask(sequence)
        if not family.asked:
            self._close(active, family, family.run.end())

    def _book(self, active: ActiveRequest, family: Family) -> None:
        """Pass on what the program has said about its choices."""
        said = family.run.said()
        if said.deltas:
            self.generated_tokens += sum(len(delta.token_ids) for delta in said.deltas.values())
            self._outbox.output(active).absorb(said)

    def _close(self, active: ActiveRequest, family: Family, last: Output) -> None:
        self._outbox.output(active).absorb(last)
        for sequence in active.sequences:
            self._release(sequence)
        family.close()
        self._end(active)
