"""The event loop's side of the engine: who is let in, what they hear, how the engine is doing.

Everything that computes happens in `EngineLoop`, in the model's thread. Knows nothing about text or HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import wait

from engine.admission import Admission, QueueLimits
from engine.executor import Executor
from engine.loop import Abort, EngineLoop, Submit
from engine.mailbox import Mailbox
from engine.request import DecodeRequest, Output
from engine.runners.base import Health, Overloaded, Stats, TooLarge
from engine.scheduler import Scheduler
from engine.thread import ModelThread


class Engine:
    """Runs one executor in its own thread."""

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        limits: QueueLimits,
        thread: ModelThread | None = None,
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        """`thread` is the one that has loaded the model; taken over until `close`."""
        self._admission = Admission(limits, scheduler.max_seqs)
        self._page_size = executor.pages.page_size
        self._num_pages = executor.pages.num_pages
        self._closing = False
        self._loop = EngineLoop(executor, scheduler, on_fatal)
        self._thread = thread or ModelThread()
        self._running = self._thread.submit(self._loop.run)
        # Whoever posts after the loop's last look at its inbox is failed here, or finds `_running` done.
        self._running.add_done_callback(lambda _: self._loop.fail_everything(Overloaded("shutting down")))

    async def stream(self, request: DecodeRequest) -> AsyncIterator[Output]:
        """Submit and yield merged outputs until the request ends; closing the iterator aborts it."""
        self._admit_or_raise(request)
        mailbox = Mailbox()
        self._loop.post(Submit(request, mailbox))
        ended = False
        try:
            if self._running.done():
                raise Overloaded(self.health().reason)
            while (output := await mailbox.get()) is not None:
                self._admission.answered(request.id)
                yield output
            ended = True
        finally:
            self._admission.leave(request.id)
            if not ended:
                self.abort(request.id)

    def abort(self, request_id: str, choice: int | None = None) -> None:
        """End a request or one of its choices at the next step boundary; unknown ids are ignored."""
        if not self._running.done():
            self._loop.post(Abort(request_id, choice))

    def health(self) -> Health:
        if self._loop.dead is not None:
            return Health(False, f"engine stopped: {type(self._loop.dead).__name__}")
        if self._closing:
            return Health(False, "shutting down")
        if self._running.done():
            return Health(False, "engine thread ended")
        return Health(True)

    def stats(self) -> Stats:
        return self._loop.stats

    def close(self, timeout_s: float) -> None:
        """Refuse new work, let running requests finish within the timeout, abort the rest, join. Blocking."""
        self._closing = True
        self._loop.finish()
        wait([self._running], timeout_s)
        self._loop.stop()
        self._thread.close()

    def _admit_or_raise(self, request: DecodeRequest) -> None:
        health = self.health()
        if not health.ready:
            raise Overloaded(health.reason)
        needed = -(-(len(request.prompt_ids) + request.max_tokens) // self._page_size)
        if needed > self._num_pages - 1:
            raise TooLarge(f"the request needs {needed} KV pages, the server has {self._num_pages - 1}")
        self._admission.enter(request)
