"""Scorers of other packages: their code may take long, raise or never end, and holds up nobody else's request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread

from server.votes.problem import Problem
from server.votes.scoring.scored import ScorerFailed, Scores
from voting.scorers import Scorer, ask


@dataclass(frozen=True)
class InstalledScorer:
    """Asks a scorer of the registry."""

    scorer: Scorer

    async def scores(self, problem: Problem, texts: Sequence[str]) -> Scores:
        done: Future[Scores] = Future()

        def work() -> None:
            if not done.set_running_or_notify_cancel():  # from here on it cannot be cancelled, only left alone
                return
            try:
                done.set_result(Scores(tuple(ask(self.scorer, problem.text, texts))))
            except BaseException as error:  # it must not end the event loop, whatever it is
                done.set_exception(_failure(error))

        # a thread of its own: the pool that tokenizes cannot run out of them, and the process can end before it does
        Thread(target=work, name=f"scorer {self.scorer.name}", daemon=True).start()
        return await asyncio.wrap_future(done)


def _failure(error: BaseException) -> ScorerFailed:
    failure = ScorerFailed(f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
