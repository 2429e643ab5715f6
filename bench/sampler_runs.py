"""Samples from a model in this process: many requests at once through the engine, in whatever order they end.

Knows chains, prompts and seeds; nothing about what is measured.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.request import DecodeRequest, FinishReason
from samplers.chain import Chain
from server.config import load_config
from server.launch import serve_model
from spec_decode.request import SpecRequest
from spec_decode.statistics import SpecStatistics

SLOTS = 64


@dataclass(frozen=True)
class Job:
    """n samples of one prompt. `key` names it among all jobs of a call."""

    key: Hashable
    chain: Chain
    prompt: tuple[int, ...]
    seed: int
    n: int
    max_tokens: int
    whole: bool = False  # never ends before `max_tokens`: the tokens that end a text are masked
    line: bool = False  # ends with the first token that holds a line break, which belongs to the sample
    salt: str = ""  # jobs of one salt share what has been computed of their prompts
    top: int | None = None  # also the log-probabilities of so many most probable tokens at each place
    speculation: SpecRequest | None = None  # None: plain decoding


@dataclass
class Sample:
    """One choice, without the token that ended the text."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of every token that was drawn, the ending one included; raw
    details: Mapping[str, Any] = field(default_factory=dict)  # what a program says about it
    ending: int | None = None  # the token that ended the text; None: it was cut, or its last token ended it
    top: list[list[float]] = field(default_factory=list)  # per drawn token, descending, where the job wants them; raw
    speculation: SpecStatistics | None = None  # of a job that may speculate


@dataclass
class Answer:
    """What a job has brought."""

    samples: list[Sample]  # fewer than n where a program finds no more
    report: Mapping[str, Any] = field(default_factory=dict)  # what a program says about the whole request


@dataclass(frozen=True)
class Timed:
    """Jobs and their wall time."""

    seconds: float  # of all of them
    answers: dict[Hashable, Answer]


class Failed(RuntimeError):
    """A job that ended in an error."""


class Sampling:
    """A loaded model; use as a context manager."""

    def __init__(self, model: str, threads: int | None, ngrams: Path | None = None, draft: str | None = None) -> None:
        """`ngrams`: a file of tables for superposed decoding; `draft`: a model that drafts for it."""
        names = None if ngrams is None else str(ngrams)
        config = load_config({"model": model, "threads": threads, "max_seqs": SLOTS, "ngrams": names}, {})
        served = serve_model(model, config, draft=draft)
        self.codec, self.runner = served.tokenizer, served.runner
        self.eos = served.eos_token_ids
        pieces = enumerate(self.runner.facts.pieces or ())
        self._line_ends = frozenset(token for token, piece in pieces if b"\n" in piece)
        self._asked = itertools.count()

    def __enter__(self) -> Sampling:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run(self.runner.close(0.0 if kind else 5.0))

    def run(
        self, jobs: Sequence[Job], done: Callable[[], None], at_once: int | None = None
    ) -> dict[Hashable, Answer | Failed]:
        """All jobs, `at_once` at a time; `done` is called after each. Without a number as many as the engine has slots
        for, if each takes n, and some more that wait."""
        if at_once is None:
            at_once = 4 + SLOTS // max(1, min((job.n for job in jobs), default=1))
        return asyncio.run(self._run(jobs, done, at_once))

    def answers(
        self, jobs: Sequence[Job], done: Callable[[], None], at_once: int | None = None
    ) -> dict[Hashable, Answer]:
        """`run` where none may fail. Raises Failed."""
        return _all_of(self.run(jobs, done, at_once))

    def timed(self, jobs: Sequence[Job], at_once: int = 1) -> Timed:
        """`at_once` at a time, by default one after the other. Raises Failed."""

        async def clocked() -> tuple[float, dict[Hashable, Answer | Failed]]:
            began = time.perf_counter()
            results = await self._run(jobs, lambda: None, at_once)
            return time.perf_counter() - began, results

        seconds, results = asyncio.run(clocked())
        return Timed(seconds, _all_of(results))

    async def _run(
        self, jobs: Sequence[Job], done: Callable[[], None], at_once: int
    ) -> dict[Hashable, Answer | Failed]:
        results: dict[Hashable, Answer | Failed] = {}
        waiting = iter(jobs)

        async def work() -> None:
            for job in waiting:  # one iterator for all workers: each takes the next job
                try:
                    results[job.key] = await self._one(job)
                except Failed as error:
                    results[job.key] = error
                done()

        await asyncio.gather(*(work() for _ in range(at_once)))
        return results

    async def _one(self, job: Job) -> Answer:
        request = self._request(job)
        answer = Answer([Sample() for _ in range(job.n)])
        async for output in self.runner.submit(request):
            for choice, delta in output.deltas.items():
                sample = answer.samples[choice]
                sample.tokens += delta.token_ids
                sample.logprobs += delta.logprobs
                sample.top += [[value for _, value in score.top] for score in delta.scores]
                if delta.finish is None:
                    continue
                if delta.finish.reason is FinishReason.ERROR:
                    raise Failed(delta.finish.message)
                if delta.finish.stop_token_id in self.eos:
                    sample.ending = sample.tokens.pop()
                sample.details, sample.speculation = delta.finish.details, delta.finish.speculation
            if output.absent:
                del answer.samples[-output.absent :]
            answer.report = output.report or answer.report
        return answer

    def _request(self, job: Job) -> DecodeRequest:
        by_program = job.chain.program is not None  # programs look for strings, plain choices for ids
        return DecodeRequest(
            id=str(next(self._asked)),
            prompt_ids=job.prompt,
            chain=job.chain,
            seed=job.seed,
            max_tokens=job.max_tokens,
            min_tokens=job.max_tokens if job.whole else 0,
            n=job.n,
            eos_token_ids=self.eos,
            stop_token_ids=self._line_ends if job.line and not by_program else frozenset(),
            stops=(b"\n",) if job.line and by_program else (),
            logprobs=job.top,
            delivery_interval_s=60.0,
            cache_salt=job.salt,
            speculation=job.speculation,
        )


def _all_of(results: Mapping[Hashable, Answer | Failed]) -> dict[Hashable, Answer]:
    """Raises the first Failed."""
    answers: dict[Hashable, Answer] = {}
    for key, result in results.items():
        if isinstance(result, Failed):
            raise result
        answers[key] = result
    return answers
