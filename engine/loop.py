"""The engine thread's loop: takes messages in, runs steps, books what they computed, hands outputs over.

Owns the scheduler, the executor and all request state. The event loop reaches it through the inbox only and hears
back once per step. Knows nothing about text or HTTP, and of the model only what `Executor` offers.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.executor import Drawn, Executor, OutOfDeviceMemory, StepResult
from engine.mailbox import Mailbox
from engine.outbox import Outbox
from engine.programs import Programs
from engine.request import DecodeRequest, Finish, FinishReason
from engine.runners.base import EngineFailed, Overloaded, Stats
from engine.scheduler import Scheduler, Work
from engine.sequence import ActiveRequest, Sequence, activate
from engine.speculation import Speculation
from samplers.failures import CONSTRAINT_UNSATISFIABLE

log = logging.getLogger(__name__)
FATAL_FAILURES = 3  # failed steps in a row after which the engine gives up


@dataclass(frozen=True)
class Submit:
    """A request and where its outputs go."""

    request: DecodeRequest
    mailbox: Mailbox


@dataclass(frozen=True)
class Abort:
    """The end of a request, or of one choice of it."""

    request_id: str
    choice: int | None


@dataclass
class _Counters:
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    steps: int = 0
    masked_rows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class EngineLoop:
    """Steps one executor until it is told to end or cannot go on."""

    def __init__(
        self, executor: Executor, scheduler: Scheduler, on_fatal: Callable[[BaseException], None] | None
    ) -> None:
        self._executor = executor
        self._scheduler = scheduler
        self._on_fatal = on_fatal
        # appended to by event loops, drained by the engine thread at step boundaries
        self._inbox: deque[Submit | Abort] = deque()
        self._wake = threading.Event()
        self._finishing = False
        self._stopping = False
        # written by the engine thread only; the first two are read by anybody
        self.dead: BaseException | None = None
        self.stats = Stats()
        self._live: dict[str, ActiveRequest] = {}
        self._arrivals = 0
        self._counters = _Counters()
        self._failures = 0
        self._outbox = Outbox()
        self._programs = Programs(executor, scheduler, self._outbox, self._release, self._end)
        self._speculation = Speculation(executor, scheduler)
        self._refresh_stats()

    # --- any thread -------------------------------------------------------------------------------------------

    def post(self, message: Submit | Abort) -> None:
        """Leave a message for the next step boundary."""
        self._inbox.append(message)
        self._wake.set()

    def finish(self) -> None:
        """End when everything that has been submitted is done."""
        self._finishing = True
        self._wake.set()

    def stop(self) -> None:
        """End at the next step boundary."""
        self._stopping = True
        self._wake.set()

    # --- engine thread ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Blocks until the end, whatever ends it; everybody waiting hears of it."""
        try:
            self._loop()
        except BaseException as error:  # the thread's last boundary
            log.exception("the engine stopped")
            self.dead = error
            try:
                self.fail_everything(EngineFailed("the engine stopped"))
            finally:
                if self._on_fatal is not None:
                    self._on_fatal(error)
        else:
            self.fail_everything(Overloaded("shutting down"))

    def fail_everything(self, error: Exception) -> None:
        """Send an error to whoever waits, without a look at pages or slots: they may be what is broken.

        For the engine thread, or for anybody once `run` has ended.
        """
        mailboxes = [active.mailbox for active in self._live.values()]
        while self._inbox:
            message = self._inbox.popleft()
            if isinstance(message, Submit):
                mailboxes.append(message.mailbox)
        self._live.clear()
        self._outbox.fail(mailboxes, error)
        self.stats = dataclasses.replace(self.stats, requests_running=0, requests_waiting=0, queued_tokens=0)

    def _loop(self) -> None:
        while not self._stopping:
            self._wake.clear()
            while self._inbox:
                self._take(self._inbox.popleft())
            if self._scheduler.has_work():
                self._step()
            else:
                self._flush()
                if self._finishing:
                    return
                if not self._inbox:
                    self._executor.check_integrity([])
                    self._wake.wait()

    def _take(self, message: Submit | Abort) -> None:
        if isinstance(message, Submit):
            active = activate(message.request, message.mailbox, self._arrivals)
            self._arrivals += 1
            self._live[message.request.id] = active
            self._counters.prompt_tokens += len(message.request.prompt_ids)
            if message.request.chain.program is None:
                self._scheduler.add(active)
            else:
                self._programs.start(active)
        elif (aborted := self._live.get(message.request_id)) is not None and aborted.family is not None:
            if message.choice is None:  # a program ends its choices itself, at stop strings too
                self._programs.finish(aborted, Finish(FinishReason.ABORT))
        elif aborted is not None:
            for sequence in aborted.sequences:
                if sequence.finish is None and message.choice in (None, sequence.choice):
                    self._finish(sequence, Finish(FinishReason.ABORT))

    def _step(self) -> None:
        began = time.perf_counter()
        works = self._prepare_slots(self._scheduler.schedule())
        if not works:
            self._flush()
            return
        planned = time.perf_counter()
        try:
            self._speculation.draft(works)
            drafted = time.perf_counter()
            result = self._executor.execute(works)
        except OutOfDeviceMemory as error:
            self._step_too_large(works, error)
            return
        except Exception:
            self._step_failed(works)
            return
        self._failures = 0
        executed = time.perf_counter()
        self._commit(works, result)
        self._speculation.measured(works, time.perf_counter() - drafted)
        self._count("schedule", planned - began)
        self._count("draft", drafted - planned)
        for part, seconds in result.seconds.items():
            self._count(part, seconds)
        self._counters.steps += 1
        self._flush()
        ended = time.perf_counter()
        self._count("deliver", ended - executed)
        self._speculation.stepped(works, ended - began)

    def _prepare_slots(self, works: list[Work]) -> list[Work]:
        """Write parameters into slots that were handed out in this step (a resumed sequence still has its own).

        A request whose parameters a sampler cannot take fails; the works that are left are returned.
        """
        failed: list[ActiveRequest] = []
        for slot in self._scheduler.taken_slots:
            self._executor.free(slot)
        self._scheduler.taken_slots.clear()
        for work in works:
            active = work.sequence.active
            try:
                for sequence in (work.sequence, *work.draws):
                    if (not sequence.admitted or sequence.heard < 0) and active not in failed:
                        sequence.admitted = True  # a half-written slot has to be freed like a whole one
                        self._executor.admit(sequence)
            except Exception:
                log.exception("request %s cannot be admitted", active.request.id)
                self._fail(active, "the sampler's parameters cannot be used")
                failed.append(active)
        return [work for work in works if work.sequence.active not in failed]

    def _commit(self, works: list[Work], result: StepResult) -> None:
        """Book what a finished step computed and drew."""
        for work in works:
            sequence = work.sequence
            self._computed(sequence, work.count)
            if (family := sequence.active.family) is not None:
                family.run.computed += max(0, min(work.count, sequence.computed - sequence.prompt_length))
            self._scheduler.fork_followers(work)
        for sequence, first, scores in result.prompt_scores:
            known = sequence.active.prompt_scores
            assert known is not None
            known[first : first + len(scores)] = scores
        failures = [one for one in (*result.drawn, *result.rows) if one.failure is not None]
        self._counters.masked_rows += sum(
            one.failure is not None and one.failure.code == CONSTRAINT_UNSATISFIABLE for one in result.drawn
        )
        failed = [one.sequence for one in failures if one.failure.code != CONSTRAINT_UNSATISFIABLE]
        if failed:
            self._distrust(failed)
        for one in result.drawn:
            self._accept(one)
        self._programs.answer(result.rows)
        for work in works:
            if work.sequence.active.request.max_tokens == 0 and work.sequence.needed == 0:
                self._scored(work.sequence)

    def _computed(self, sequence: Sequence, count: int) -> None:
        """The KV of so many more of its tokens is cached."""
        pages = self._scheduler.pages
        assert sequence.branch is not None
        whole = sequence.computed // pages.page_size
        sequence.computed += count
        if sequence.computed // pages.page_size > whole:
            pages.register(sequence.branch, sequence.tokens[: min(sequence.computed, sequence.shareable)])

    def _distrust(self, failed: list[Sequence]) -> None:
        """Where failed sequences had NaN cached, nobody may find it, and whoever shares it computes it again."""
        damaged: set[int] = set()
        scheduler = self._scheduler
        holders = failed + [one for one in (*scheduler.running, *scheduler.idle) if one not in failed]
        for sequence in holders:
            if sequence.branch is None or (sequence not in failed and damaged.isdisjoint(sequence.branch.pages)):
                continue
            damaged |= self._executor.mend(sequence)
            scheduler.pages.forget(sequence.branch, damaged)
            if sequence in scheduler.idle:
                scheduler.drop(sequence)
            elif sequence not in failed:
                scheduler.preempt(sequence)

    def _accept(self, one: Drawn) -> None:
        sequence = one.sequence
        request = sequence.active.request
        delta = self._outbox.delta(sequence.active, sequence.choice)
        count, finish = self._kept(one)
        emitted = one.tokens[:count]
        sequence.tokens += emitted
        delta.token_ids += emitted
        delta.logprobs += one.logprobs[:count]
        delta.scores += one.scores[:count]
        if request.trace is not None and emitted:
            delta.traces.append(one.trace)
        self._counters.generated_tokens += count
        self._speculation.learn(one, emitted)
        # not of what holds NaN, nor of a branch that shared it and has been dropped
        if one.verified is not None and one.failure is None and sequence.branch is not None:
            self._computed(sequence, min(len(one.verified.path), count))
        if finish is not None:
            self._finish(sequence, finish)

    def _kept(self, one: Drawn) -> tuple[int, Finish | None]:
        """How many of the drawn tokens belong to the output, and how it ends with the last of them, if it does."""
        sequence, request = one.sequence, one.sequence.active.request
        scores = one.scores or [None] * len(one.tokens)
        for count, (token, score) in enumerate(zip(one.tokens, scores, strict=True), 1):
            length = sequence.position + count
            ends = token in request.eos_token_ids or token in request.stop_token_ids
            if ends and length > request.min_tokens:
                return count, Finish(FinishReason.STOP, token)
            if length >= request.max_tokens:
                return count, Finish(FinishReason.LENGTH)
            if sequence.watch is not None and score is not None and sequence.watch.feed(score):
                return count, Finish(FinishReason.LENGTH, details={"ended_early": sequence.watch.reason})
        if one.failure is not None:
            finish = Finish(FinishReason.ERROR, None, one.failure.code, one.failure.message)
            return len(one.tokens), finish
        return len(one.tokens), None

    def _scored(self, sequence: Sequence) -> None:
        active = sequence.active
        self._outbox.output(active).scored = True
        for one in active.sequences:
            self._release(one)
            one.finish = Finish(FinishReason.LENGTH)
        self._end(active)

    # --- failures

    def _fail(self, active: ActiveRequest, message: str) -> None:
        if active.family is not None:
            self._programs.finish(active, Finish(FinishReason.ERROR, None, "internal_error", message))
            return
        for sequence in list(active.sequences):
            if sequence.finish is None:
                self._finish(sequence, Finish(FinishReason.ERROR, None, "internal_error", message))

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

    def _step_too_large(self, works: list[Work], error: OutOfDeviceMemory) -> None:
        """Nothing was committed: the same sequences come again with fewer drafts if they had some, else in smaller
        steps, unless this was the smallest."""
        if self._speculation.shrink(works):
            self._scheduler.requeue(works)
            self._executor.pages.drain_copies()
            log.warning("out of device memory: fewer drafts from now on (%s)", error)
            return
        if not self._scheduler.halve(works):
            self._step_failed(works)
            return
        self._executor.pages.drain_copies()
        log.warning(
            "out of device memory: steps of at most %d tokens from now on (%s)", self._scheduler.max_batch_tokens, error
        )

    # --- ends

    def _finish(self, sequence: Sequence, finish: Finish) -> None:
        if sequence.slot is not None and sequence.admitted and (told := self._executor.tell(sequence.slot)):
            finish = dataclasses.replace(finish, details={**finish.details, **told})
        finish = dataclasses.replace(finish, speculation=self._speculation.statistics(sequence))
        sequence.finish = finish
        self._outbox.delta(sequence.active, sequence.choice).finish = finish
        self._release(sequence)
        active = sequence.active
        if active.followers and all(s.finish is not None or s in active.followers for s in active.sequences):
            # the leader ended before its prompt was computed: the next choice leads
            self._scheduler.add_leader(active)
        if not active.unfinished:
            self._end(active)

    def _release(self, sequence: Sequence) -> None:
        slot = sequence.slot
        self._speculation.free(sequence)
        self._scheduler.finish(sequence)
        if slot is not None and sequence.admitted:
            self._executor.free(slot)

    def _end(self, active: ActiveRequest) -> None:
        self._counters.cached_prompt_tokens += active.cached_tokens
        del self._live[active.request.id]
        self._outbox.end(active)

    # --- what others see

    def _flush(self) -> None:
        self._refresh_stats()
        self._outbox.flush()

    def _count(self, part: str, seconds: float) -> None:
        self._counters.seconds[part] = self._counters.seconds.get(part, 0.0) + seconds

    def _refresh_stats(self) -> None:
        scheduler, pages, counters = self._scheduler, self._scheduler.pages, self._counters
        running = {id(sequence.active) for sequence in (*scheduler.running, *scheduler.idle)}
        self.stats = Stats(
            requests_running=len(running),
            requests_waiting=len(self._live) - len(running),
            queued_tokens=sum(sequence.prompt_length for sequence in scheduler.waiting if sequence.branch is None),
            kv_pages_total=pages.num_pages - 1,
            kv_pages_in_use=pages.in_use,
            kv_pages_cached=pages.cached,
            slots_total=scheduler.max_seqs,
            slots_in_use=scheduler.max_seqs - len(scheduler.free_slots),
            generated_tokens=counters.generated_tokens + self._programs.generated_tokens,
            prompt_tokens=counters.prompt_tokens,
            cached_prompt_tokens=counters.cached_prompt_tokens,
            preemptions=scheduler.preemptions,
            steps=counters.steps,
            masked_rows=counters.masked_rows,
            step_seconds=dict(counters.seconds),
            speculation=self._speculation.totals(),
            broken_sources=self._speculation.broken,
        )
