"""The engine thread: takes requests in, runs steps, hands outputs to mailboxes.

One thread owns the executor and the scheduler. The event loop talks to it through the inbox only, and hears back
once per step. Knows nothing about text or HTTP, and of the model only what `Executor` offers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import Any, Protocol

from engine.mailbox import Mailbox, Parcel, deliver
from engine.pages import Pages
from engine.request import DecodeRequest, Delta, Finish, FinishReason, Output
from engine.runners.base import EngineFailed, Health, Overloaded, Stats, TooLarge
from engine.scheduler import Scheduler, Work
from engine.sequence import ActiveRequest, Sequence, activate
from engine.thread import ModelThread

log = logging.getLogger(__name__)
FATAL_FAILURES = 3  # failed steps in a row after which the engine gives up


class Executor(Protocol):
    """What the engine asks of the half that owns the model."""

    pages: Pages

    def admit(self, sequence: Sequence) -> None: ...
    def free(self, slot: int) -> None: ...
    def execute(self, works: list[Work]) -> Any: ...
    def mend(self, sequence: Sequence) -> None: ...
    def check_integrity(self, live: list[Sequence]) -> None: ...


@dataclass(frozen=True)
class QueueLimits:
    """Admission limits, checked in the event loop before a request reaches the inbox."""

    requests: int  # beyond those the slots can hold
    tokens: int  # of prompts that nothing has been answered to; one prompt alone always passes


@dataclass
class _Counters:
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


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
        self._executor = executor
        self._scheduler = scheduler
        self._limits = limits
        self._on_fatal = on_fatal
        # inbox: appended to by the event loop, drained by the engine thread at step boundaries
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._live: dict[str, ActiveRequest] = {}  # engine thread
        self._arrivals = 0
        self._counters = _Counters()
        self._failures = 0
        self._outbox: list[Parcel] = []
        self._touched: dict[str, tuple[ActiveRequest, Output]] = {}
        # event loop side
        self._submitted: set[str] = set()  # ids of live requests
        self._unanswered: dict[str, int] = {}  # those without any output yet -> prompt tokens
        self._closing = False
        self._stop = False
        self._dead: BaseException | None = None
        self._stats = Stats()
        self._refresh_stats()
        self._thread = thread or ModelThread()
        self._running = self._thread.submit(self._main)

    # --- event loop -------------------------------------------------------------------------------------------

    async def stream(self, request: DecodeRequest) -> AsyncIterator[Output]:
        """Submit and yield merged outputs until the request ends; closing the iterator aborts it."""
        self._admit_or_raise(request)
        mailbox = Mailbox()
        self._submitted.add(request.id)
        self._unanswered[request.id] = len(request.prompt_ids)
        self._post(lambda: self._add(request, mailbox))
        ended = False
        try:
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
        self._post(lambda: self._abort(request_id, choice))

    def health(self) -> Health:
        if self._dead is not None:
            return Health(False, f"engine stopped: {type(self._dead).__name__}")
        if self._closing:
            return Health(False, "shutting down")
        if self._running.done():
            return Health(False, "engine thread ended")
        return Health(True)

    def stats(self) -> Stats:
        return self._stats

    def close(self, timeout_s: float) -> None:
        """Refuse new work, let running requests finish within the timeout, abort the rest, join. Blocking."""
        self._closing = True
        self._wake.set()
        wait([self._running], timeout_s)
        self._stop = True
        self._wake.set()
        self._thread.close()

    def _admit_or_raise(self, request: DecodeRequest) -> None:
        health = self.health()
        if not health.ready:
            raise Overloaded(health.reason)
        if request.id in self._submitted:
            raise ValueError(f"request id {request.id} is already running")
        pages = self._executor.pages
        needed = -(-(len(request.prompt_ids) + request.max_tokens) // pages.page_size)
        if needed > pages.num_pages - 1:
            raise TooLarge(f"the request needs {needed} KV pages, the server has {pages.num_pages - 1}")
        if len(self._submitted) >= self._limits.requests + self._scheduler.max_seqs:
            raise Overloaded(f"{len(self._submitted)} requests are running or waiting")
        queued = sum(self._unanswered.values())
        if queued and queued + len(request.prompt_ids) > self._limits.tokens:
            raise Overloaded(f"{queued} prompt tokens are waiting")

    def _post(self, message: Callable[[], None]) -> None:
        self._inbox.append(message)
        self._wake.set()

    # --- engine thread ----------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # the thread's last boundary: everybody waiting must hear of it
            log.exception("the engine stopped")
            self._dead = error
            self._fail_everything(EngineFailed("the engine stopped"))
            if self._on_fatal is not None:
                self._on_fatal(error)
        finally:
            self._fail_everything(Overloaded("shutting down"))

    def _loop(self) -> None:
        while not self._stop:
            self._wake.clear()
            while self._inbox:
                self._inbox.popleft()()
            if self._scheduler.has_work():
                self._step()
            else:
                self._flush()
                if self._closing:
                    return
                if not self._inbox:
                    self._executor.check_integrity([])
                    self._wake.wait()

    def _step(self) -> None:
        began = time.perf_counter()
        works = self._prepare_slots(self._scheduler.schedule())
        if not works:
            self._flush()
            return
        planned = time.perf_counter()
        try:
            result = self._executor.execute(works)
        except Exception:
            self._step_failed(works)
            return
        self._failures = 0
        executed = time.perf_counter()
        self._commit(works, result)
        self._count("schedule", planned - began)
        for part, seconds in result.seconds.items():
            self._count(part, seconds)
        self._counters.steps += 1
        self._flush()
        self._count("deliver", time.perf_counter() - executed)

    def _prepare_slots(self, works: list[Work]) -> list[Work]:
        """Write parameters into slots that were handed out in this step (a resumed sequence still has its own).

        A request whose parameters a sampler cannot take fails; the works that are left are returned.
        """
        failed: list[ActiveRequest] = []
        for work in works:
            active = work.sequence.active
            try:
                for sequence in (work.sequence, *work.draws):
                    if not sequence.admitted and active not in failed:
                        sequence.admitted = True  # a half-written slot has to be freed like a whole one
                        self._executor.admit(sequence)
            except Exception:
                log.exception("request %s cannot be admitted", active.request.id)
                self._fail(active, "the sampler's parameters cannot be used")
                failed.append(active)
        return [work for work in works if work.sequence.active not in failed]

    def _commit(self, works: list[Work], result: Any) -> None:
        """Book what a finished step computed and drew."""
        pages = self._scheduler.pages
        for work in works:
            sequence = work.sequence
            whole = sequence.computed // pages.page_size
            sequence.computed += work.count
            if sequence.computed // pages.page_size > whole:
                pages.register(sequence.branch, sequence.tokens[: sequence.computed])
            self._scheduler.fork_followers(work)
        for sequence, first, scores in result.prompt_scores:
            sequence.active.prompt_scores[first : first + len(scores)] = scores
        for one in result.drawn:
            self._accept(one)
        for work in works:
            if work.sequence.active.request.max_tokens == 0 and work.sequence.needed == 0:
                self._scored(work.sequence)

    def _accept(self, one: Any) -> None:
        sequence: Sequence = one.sequence
        request = sequence.active.request
        delta = self._delta(sequence)
        if one.failure is not None:
            self._executor.mend(sequence)
            self._finish(sequence, Finish(FinishReason.ERROR, None, one.failure.code, one.failure.message))
            return
        sequence.tokens.append(one.token)
        delta.token_ids.append(one.token)
        delta.logprobs.append(one.logprob)
        if one.score is not None:
            delta.scores.append(one.score)
        self._counters.generated_tokens += 1
        count = sequence.position
        ends = one.token in request.eos_token_ids or one.token in request.stop_token_ids
        if ends and count > request.min_tokens:
            self._finish(sequence, Finish(FinishReason.STOP, one.token))
        elif count >= request.max_tokens:
            self._finish(sequence, Finish(FinishReason.LENGTH))

    def _fail(self, active: ActiveRequest, message: str) -> None:
        for sequence in list(active.sequences):
            if sequence.finish is None:
                self._finish(sequence, Finish(FinishReason.ERROR, None, "internal_error", message))

    def _scored(self, sequence: Sequence) -> None:
        active, output = self._output(sequence.active)
        output.scored = True
        for one in active.sequences:
            self._release(one)
            one.finish = Finish(FinishReason.LENGTH)
        self._end(active, True)

    def _step_failed(self, works: list[Work]) -> None:
        """A forward pass raised: its requests fail, everything they hold is given back, the engine goes on."""
        log.exception("a step of %d sequences failed", len(works))
        self._failures += 1
        for work in works:
            self._fail(work.sequence.active, "the step failed")
        self._executor.pages.drain_copies()
        self._flush()
        live = [s for active in self._live.values() for s in active.sequences]
        self._executor.check_integrity(live)
        if self._failures >= FATAL_FAILURES:
            raise EngineFailed(f"{self._failures} steps in a row failed")

    def _add(self, request: DecodeRequest, mailbox: Mailbox) -> None:
        active = activate(request, mailbox, self._arrivals)
        self._arrivals += 1
        self._live[request.id] = active
        self._counters.prompt_tokens += len(request.prompt_ids)
        self._scheduler.add(active)

    def _abort(self, request_id: str, choice: int | None) -> None:
        active = self._live.get(request_id)
        if active is None:
            return
        for sequence in active.sequences:
            if sequence.finish is None and choice in (None, sequence.choice):
                self._finish(sequence, Finish(FinishReason.ABORT))

    def _finish(self, sequence: Sequence, finish: Finish) -> None:
        sequence.finish = finish
        self._delta(sequence).finish = finish
        self._release(sequence)
        active = sequence.active
        if active.followers and all(s.finish is not None or s in active.followers for s in active.sequences):
            # the leader ended before its prompt was computed: the next choice leads
            self._scheduler.add_leader(active)
        if not active.unfinished:
            self._end(active, True)

    def _release(self, sequence: Sequence) -> None:
        slot = sequence.slot
        self._scheduler.finish(sequence)
        if slot is not None and sequence.admitted:
            self._executor.free(slot)

    def _end(self, active: ActiveRequest, end: bool | Exception) -> None:
        _, output = self._output(active)
        self._counters.cached_prompt_tokens += active.cached_tokens
        output.prompt_scores = active.prompt_scores
        output.cached_tokens = active.cached_tokens
        del self._live[active.request.id]
        del self._touched[active.request.id]
        self._outbox.append((active.mailbox, output, end))

    def _output(self, active: ActiveRequest) -> tuple[ActiveRequest, Output]:
        return self._touched.setdefault(active.request.id, (active, Output()))

    def _delta(self, sequence: Sequence) -> Delta:
        _, output = self._output(sequence.active)
        delta = output.deltas.get(sequence.choice)
        if delta is None:
            delta = output.deltas[sequence.choice] = Delta(sequence.choice)
        return delta

    def _flush(self) -> None:
        """One hop to the event loop with everything the step produced."""
        now = time.monotonic()
        held: dict[str, tuple[ActiveRequest, Output]] = {}
        for active, output in self._touched.values():
            if active.delivered_at and now - active.delivered_at < active.request.delivery_interval_s:
                held[active.request.id] = (active, output)
                continue
            active.delivered_at = now
            output.cached_tokens = active.cached_tokens
            if active.prompt_scores is not None and all(s is not None for s in active.prompt_scores[1:]):
                output.prompt_scores = active.prompt_scores
            self._outbox.append((active.mailbox, output, False))
        self._touched = held
        self._refresh_stats()
        if not self._outbox:
            return
        by_loop: dict[Any, list[Parcel]] = {}
        for parcel in self._outbox:
            by_loop.setdefault(parcel[0].loop, []).append(parcel)
        self._outbox = []
        for loop, parcels in by_loop.items():
            try:
                loop.call_soon_threadsafe(deliver, parcels)
            except RuntimeError:  # the loop is closed: nobody is left to hear it
                log.debug("dropped %d outputs of a closed event loop", len(parcels))

    def _fail_everything(self, error: Exception) -> None:
        self._touched.clear()
        while self._inbox:  # requests posted but never seen
            self._inbox.popleft()()
        for active in self._live.values():
            for sequence in active.sequences:
                self._scheduler.finish(sequence)
            self._outbox.append((active.mailbox, None, error))
        self._live.clear()
        self._touched.clear()
        self._flush()

    def _count(self, part: str, seconds: float) -> None:
        self._counters.seconds[part] = self._counters.seconds.get(part, 0.0) + seconds

    def _refresh_stats(self) -> None:
        scheduler, pages, counters = self._scheduler, self._scheduler.pages, self._counters
        running = {id(sequence.active) for sequence in scheduler.running}
        self._stats = Stats(
            requests_running=len(running),
            requests_waiting=len(self._live) - len(running),
            queued_tokens=sum(sequence.prompt_length for sequence in scheduler.waiting),
            kv_pages_total=pages.num_pages - 1,
            kv_pages_in_use=pages.in_use,
            kv_pages_cached=pages.cached,
            slots_total=scheduler.max_seqs,
            slots_in_use=scheduler.max_seqs - len(scheduler.free_slots),
            generated_tokens=counters.generated_tokens,
            prompt_tokens=counters.prompt_tokens,
            cached_prompt_tokens=counters.cached_prompt_tokens,
            preemptions=scheduler.preemptions,
            steps=counters.steps,
            step_seconds=dict(counters.seconds),
        )
