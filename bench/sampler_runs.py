"""Samples from a model in this process: many requests at once through the engine, in whatever order they end.

Knows chains, prompts and seeds; nothing about what is measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from engine.request import DecodeRequest, FinishReason
from samplers.chain import Chain
from server.config import load_config
from server.launch import serve_model

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


@dataclass
class Sample:
    """One choice, without the token that ended it."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of every token that was drawn, the ending one included; raw


class Failed(RuntimeError):
    """A job that ended in an error."""


class Sampling:
    """A loaded model; use as a context manager."""

    def __init__(self, model: str, threads: int | None) -> None:
        config = load_config({"model": model, "threads": threads, "max_seqs": SLOTS}, {})
        served = serve_model(model, config)
        self.codec, self.runner = served.tokenizer, served.runner
        self.eos = served.eos_token_ids

    def __enter__(self) -> Sampling:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run(self.runner.close(0.0 if kind else 5.0))

    def run(self, jobs: Sequence[Job], done: Callable[[], None]) -> dict[Hashable, list[Sample] | Failed]:
        """All jobs, as many at once as the engine has slots and some more that wait; `done` is called after each."""
        return asyncio.run(self._run(jobs, done))

    async def _run(self, jobs: Sequence[Job], done: Callable[[], None]) -> dict[Hashable, list[Sample] | Failed]:
        results: dict[Hashable, list[Sample] | Failed] = {}
        waiting = iter(jobs)

        async def work() -> None:
            for job in waiting:  # one iterator for all workers: each takes the next job
                try:
                    results[job.key] = await self._one(job)
                except Failed as error:
                    results[job.key] = error
                done()

        workers = 4 + SLOTS // max(1, min(job.n for job in jobs)) if jobs else 0
        await asyncio.gather(*(work() for _ in range(workers)))
        return results

    async def _one(self, job: Job) -> list[Sample]:
        request = DecodeRequest(
            id=str(job.key),
            prompt_ids=job.prompt,
            chain=job.chain,
            seed=job.seed,
            max_tokens=job.max_tokens,
            min_tokens=job.max_tokens if job.whole else 0,
            n=job.n,
            eos_token_ids=self.eos,
            delivery_interval_s=60.0,
        )
        samples = [Sample() for _ in range(job.n)]
        async for output in self.runner.submit(request):
            for choice, delta in output.deltas.items():
                sample = samples[choice]
                sample.tokens += delta.token_ids
                sample.logprobs += delta.logprobs
                if delta.finish is None:
                    continue
                if delta.finish.reason is FinishReason.ERROR:
                    raise Failed(delta.finish.message)
                if delta.finish.stop_token_id is not None:
                    sample.tokens.pop()
        return samples
