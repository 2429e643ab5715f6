"""The one thread in which a model computes: calls are queued, results come back as futures.

A daemon, so that a process whose start fails can end; work that must finish is waited for by `close`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class ModelThread:
    """Runs submitted calls in order."""

    def __init__(self, name: str = "engine") -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Queue a call; its exception, if any, is raised by the future's `result`."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

        self._calls.put(run)
        return future

    def close(self, timeout_s: float = 30.0) -> None:
        """End after the calls queued so far."""
        self._calls.put(None)
        self._thread.join(timeout_s)

    def _main(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
