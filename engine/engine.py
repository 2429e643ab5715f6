"""The event loop's side of the engine: who is let in, what they hear, how the engine is doing.

Everything that computes happens in `EngineLoop`, in the model's thread. Knows nothing about text or HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import wait
from dataclasses import dataclass

from engine.executor import Executor
from engine.loop import Abort, EngineLoop, Submit
from engine.mailbox import Mailbox
from engine.request import DecodeRequest, Output
from engine.runners.base import Health, Overloaded, Stats, TooLarge
from engine.scheduler import Scheduler
from engine.thread import ModelThread


@dataclass(frozen=True)
class QueueLimits:
    """Admission limits, checked in the event loop before a request reaches the inbox."""

    requests: int  # beyond those the slots can hold
    tokens: int  # of prompts that nothing has been answered to; one prompt alone always passes


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
        self._limits = limits
        self._max_seqs = scheduler.max_seqs
        self._page_size = executor.pages.page_size
        self._num_pages = executor.pages.num_pages
        self._submitted: set[str] = set()  # ids of live requests
        self._unanswered: dict[str, int] = {}  # those without any output yet -> prompt tokens
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
        self._submitted.add(request.id)
        self._unanswered[request.id] = len(request.prompt_ids)
        self._loop.post(Submit(request, mailbox))
        ended = False
        try:
            if self._running.done():
                raise Overloaded(self.health().reason)
            while (output := await mailbox.get()) is not None:
                self._unanswered.pop(request.id, None)
                yield output
            ended = True
        finally:
            self._submitted.discard(request.id)
            self._unanswered.pop(request.id, None)
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
        if request.id in self._submitted:
            raise ValueError(f"request id {request.id} is already running")
        needed = -(-(len(request.prompt_ids) + request.max_tokens) // self._page_size)
        if needed > self._num_pages - 1:
            raise TooLarge(f"the request needs {needed} KV pages, the server has {self._num_pages - 1}")
        if len(self._submitted) >= self._limits.requests + self._max_seqs:
            raise Overloaded(f"{len(self._submitted)} requests are running or waiting")
        queued = sum(self._unanswered.values())
        if queued and queued + len(request.prompt_ids) > self._limits.tokens:
            raise Overloaded(f"{queued} prompt tokens are waiting")
