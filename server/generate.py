"""Runs a job's prompts on the model's runner and yields the text events of all its choices.

One generator feeds streamed and whole responses, so they cannot disagree. Closing it ends the work. Knows nothing
about endpoints; lives in the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from engine.request import DecodeRequest, Output, TokenScore
from server.choice import ABORTED, INTERNAL, ChoiceEvent, ChoiceStream, End, TextOptions
from server.errors import ApiError, internal, overloaded
from server.metrics import Metrics
from server.prompt_boundary import Part, begin
from server.state import ServedModel
from server.text.covers import Covering
from spec_decode.statistics import SpecStatistics


@dataclass(frozen=True)
class Job:
    """The decoding work of one HTTP request."""

    model: ServedModel
    requests: tuple[DecodeRequest, ...]  # one per prompt, each for `n` choices
    options: TextOptions
    n: int  # choices the engine makes per prompt
    arrived: float  # time.perf_counter() when the request came in
    prompts_in_flight: int = 32  # likewise requests, where choices of a prompt go on behind different covers
    coverings: tuple[Covering, ...] | None = None  # per prompt, where its end may be written with other tokens
    election: Election | None = None  # makes one choice of all those of a prompt

    @property
    def shown(self) -> int:
        """Choices per prompt that come out of `run`."""
        return self.n if self.election is None else 1


@dataclass(frozen=True)
class Progress:
    """How far the samples of a prompt are whose text is not shown."""

    finished: int
    samples: int  # as far as is known


class Tokens(NamedTuple):
    """Tokens that were read and generated."""

    prompt: int = 0
    completion: int = 0


NO_TOKENS = Tokens()


class Vote(Protocol):
    """An election that has been held."""

    @property
    def size(self) -> int:
        """Characters and numbers of its report, about."""
        ...

    def report(self) -> Mapping[str, Any]:
        """What the answer says about it: finite JSON."""
        ...


@dataclass
class Step:
    """What is new about one prompt."""

    prompt: int
    events: list[ChoiceEvent] = field(default_factory=list)  # `choice` counts over all prompts
    prompt_scores: list[TokenScore | None] | None = None
    cached_tokens: int = 0  # so far, of this prompt
    absent: int = 0  # choices of this prompt that its program did not find
    report: Mapping[str, Any] | None = None  # what the program says about this prompt, at the end
    speculation: SpecStatistics | None = None  # of choices that have ended, shown or not
    # of an election
    progress: list[Progress] = field(default_factory=list)  # one per sample that has finished
    spent: Tokens = NO_TOKENS  # on all samples, shown or not, and on prompts besides the request's
    vote: Vote | None = None  # of this prompt, with its winner

    def add(self, done: SpecStatistics | None) -> None:
        """What speculation has done for a choice that has ended. None: it is not known, or there was none."""
        if done is not None:
            self.speculation = self.speculation or SpecStatistics()
            self.speculation.absorb(done)


Enough = Callable[[], bool]  # whether choices that are still being made are in vain
# choices of a request for some prompt, of which the first has this number among the prompt's
Draw = Callable[[DecodeRequest, int, Enough], AsyncGenerator[Step]]


class Election(Protocol):
    """Draws the samples of a prompt, more than are shown, and chooses one of them."""

    def steps(self, prompt: int, request: DecodeRequest, draw: Draw) -> AsyncGenerator[Step]:
        """Steps with the events of one choice, whose number is that of the prompt. Closing it ends the drawing."""
        ...


async def run(job: Job, metrics: Metrics) -> AsyncGenerator[Step]:
    """All steps of a job. Raises ApiError or what the runner raises."""
    held: list[Step] = []  # ends of failed choices, and of their programs, until it is known whether any succeeds
    succeeded = False
    async with aclosing(_merged(job, metrics)) as steps:
        async for step in steps:
            failed = [event for event in step.events if event.end is not None and event.end.failure is not None]
            others = [event for event in step.events if event.end is None or event.end.failure is None]
            succeeded = succeeded or any(event.end is not None for event in others)
            if succeeded:
                for one in held:
                    yield one
                held.clear()
            elif failed or step.report is not None:
                held.append(replace(step, events=failed, prompt_scores=None, progress=[]))
                step = replace(step, events=others, absent=0, report=None, speculation=None, spent=NO_TOKENS, vote=None)
            if step != Step(step.prompt, cached_tokens=step.cached_tokens):  # it says something
                yield step
    failures = [event for step in held for event in step.events]
    if failures:
        raise _failure(failures[0])


def _failure(event: ChoiceEvent) -> ApiError:
    """The error of a request none of whose choices succeeded."""
    assert event.end is not None and event.end.failure is not None
    match event.end.failure:
        case {"code": code} if code == INTERNAL:
            return internal()
        case {"code": code, "message": message} if code == ABORTED:
            return overloaded(message)
        case {"code": code, "message": message}:
            return ApiError(400, message, None, code)
    raise AssertionError


def _merged(job: Job, metrics: Metrics) -> AsyncGenerator[Step]:
    """The steps of all prompts as they come."""
    gate = asyncio.Semaphore(job.prompts_in_flight)
    return _merge([_prompt_steps(job, prompt, metrics, gate) for prompt in range(len(job.requests))])


async def _merge(sources: Sequence[AsyncGenerator[Step]]) -> AsyncGenerator[Step]:
    """The steps of all sources as they come; the first failure ends them all."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as steps:
            async for step in steps:
                yield step
        return
    # one slot: a producer waits until its step is taken; meanwhile its outputs merge in the runner's mailbox
    queue: asyncio.Queue[Step | BaseException | None] = asyncio.Queue(maxsize=1)

    async def produce(source: AsyncGenerator[Step]) -> None:
        try:
            async with aclosing(source) as steps:
                async for step in steps:
                    await queue.put(step)
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    producers = [asyncio.create_task(produce(source)) for source in sources]
    try:
        running = len(producers)
        while running:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in producers:
            task.cancel()
        await asyncio.gather(*producers, return_exceptions=True)


def _prompt_steps(job: Job, prompt: int, metrics: Metrics, gate: asyncio.Semaphore) -> AsyncGenerator[Step]:
    """The steps of one prompt's choices, or of the one that is elected."""
    clock = _Clock(metrics, job.model.id, job.arrived)

    def draw(request: DecodeRequest, first: int, enough: Enough) -> AsyncGenerator[Step]:
        return _drawn(job, prompt, request, first, clock, gate, enough)

    request = job.requests[prompt]
    return draw(request, 0, lambda: False) if job.election is None else job.election.steps(prompt, request, draw)


async def _drawn(
    job: Job, prompt: int, request: DecodeRequest, first: int, clock: _Clock, gate: asyncio.Semaphore, enough: Enough
) -> AsyncGenerator[Step]:
    """The steps of choices of a prompt, the first of them number `first`."""
    if job.coverings is None or not job.coverings[prompt].end:
        async with gate, aclosing(_part_steps(job, prompt, Part(request, first), clock, enough)) as steps:
            async for step in steps:
                yield step
        return
    start = await begin(job.model.runner, request, job.coverings[prompt], gate)

    async def gated(part: Part) -> AsyncGenerator[Step]:
        async with gate, aclosing(_part_steps(job, prompt, part, clock, enough)) as steps:
            async for step in steps:
                step.cached_tokens = start.cached_tokens  # what weighing has left there is no saving
                yield step

    parts = [replace(part, first=first + part.first) for part in start.parts]
    async with aclosing(_merge([gated(part) for part in parts])) as steps:
        async for step in steps:
            yield step


async def _part_steps(job: Job, prompt: int, part: Part, clock: _Clock, enough: Enough) -> AsyncGenerator[Step]:
    """The steps of choices that share their tokens up to where generation begins. Those that are in vain are aborted
    and followed to their ends all the same: what they have had by then counts. So are those that may speculate and were
    cut at a stop string: only at their ends the engine says what it has drafted."""
    if enough():
        return
    request, runner = part.request, job.model.runner
    first = prompt * job.n + part.first
    sent = job.requests[prompt].prompt_ids
    choices = [
        ChoiceStream(first + j, job.model.tokenizer, request, job.options, sent, part.beyond) for j in range(request.n)
    ]
    if part.opening is not None:
        for j in range(request.n):
            clock.tokens(part.first + j, len(part.opening.token_ids))
        yield Step(prompt, [event for choice in choices for event in choice.feed(part.opening)])
        if all(choice.done for choice in choices):
            return
    plain = request.chain.program is None  # a program ends with its report
    aborted = False
    cut: dict[int, list[ChoiceEvent]] = {}  # last events of choices whose end the engine has yet to tell
    outputs: AsyncIterator[Output] = runner.submit(request)
    try:
        async for output in outputs:
            step = Step(
                prompt,
                prompt_scores=output.prompt_scores,
                cached_tokens=output.cached_tokens,
                absent=output.absent,
                report=output.report,
            )
            for j, delta in output.deltas.items():
                if delta.finish is not None:
                    step.events += cut.pop(j, [])
                    step.add(delta.finish.speculation)
                if choices[j].done:
                    continue  # cut at a stop string; these tokens were on their way
                clock.tokens(part.first + j, len(delta.token_ids))
                events = choices[j].feed(delta)
                if plain and choices[j].done and delta.finish is None:
                    runner.abort(request.id, j)
                    if request.speculation is not None:
                        cut[j], events = events, []
                step.events += events
            for choice in choices[request.n - output.absent :]:
                choice.done = True
            if output.scored:
                step.events += [ChoiceEvent(first + j, end=End("length", None, 0.0)) for j in range(request.n)]
            yield step
            if output.scored or output.report is not None or (plain and not cut and all(one.done for one in choices)):
                return
            if not aborted and enough():
                aborted = True
                runner.abort(request.id)
    finally:
        close = getattr(outputs, "aclose", None)
        if close is not None:
            await close()
    raise overloaded("the request was ended by the server")


class _Clock:
    """Latency of one prompt's tokens."""

    def __init__(self, metrics: Metrics, model: str, arrived: float) -> None:
        self._metrics, self._model, self._arrived = metrics, model, arrived
        self._last: dict[int, float] = {}  # by choice
        self._started = False

    def tokens(self, choice: int, count: int) -> None:
        if not count:
            return
        now = time.perf_counter()
        last, self._last[choice] = self._last.get(choice), now
        if not self._started:
            self._started = True
            self._metrics.first_token(self._model, now - self._arrived)
        elif last is not None:
            self._metrics.tokens_after(self._model, now - last, count)
