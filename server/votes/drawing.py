"""The ways in which the samples of a prompt are drawn (`voting.contract.Drawing`), as generation requests.

Sample i is always choice i of a request for all of them.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from engine.request import DecodeRequest, TokenScore
from server.errors import ApiError
from server.generate import Draw, Step
from server.votes.ballot_box import BallotBox
from server.votes.problem import Problem
from server.votes.request import VoteRequest
from voting.chain import Chain
from voting.contract import Drawing, Screening
from voting.rules.deepconf import ABORTED
from voting.trace_monitor import TraceMonitor


@dataclass
class Source:
    """The samples of one prompt, as many as the vote may have."""

    vote: VoteRequest
    problem: Problem
    request: DecodeRequest
    box: BallotBox  # has every sample that finished before the next step is asked for
    longest: int  # tokens of prompt and output
    first: int = 0  # index of the request's first sample
    extra_prompts: int = 0  # tokens of prompts other than the request's
    flags: tuple[str, ...] = ()

    def steps(self, draw: Draw) -> AsyncGenerator[Step]:
        match self.vote.rule.drawing(self.vote.values):
            case Drawing.INDEPENDENT:
                return self._in_waves(self.request, self.first, draw)
            case Drawing.SCREENED:
                return self._screened(draw)
            case Drawing.CHAINED:
                return self._chained(draw)

    async def _in_waves(self, request: DecodeRequest, first: int, draw: Draw) -> AsyncGenerator[Step]:
        """No more samples at once than the vote allows: the next wave begins when the one before has finished."""
        size = self.vote.at_once or request.n
        for begin in range(0, request.n, size):
            wave = replace(
                request,
                id=f"{request.id}-{begin}" if size < request.n else request.id,
                n=min(size, request.n - begin),
                first_choice=request.first_choice + begin,
                prompt_logprobs=None if first + begin else request.prompt_logprobs,
            )
            async with aclosing(draw(wave, first + begin, self._enough)) as steps:
                async for step in steps:
                    if first + begin:
                        step.cached_tokens = 0  # what the first wave has left there is no saving
                    yield step
            if self.box.closed:
                return

    async def _screened(self, draw: Draw) -> AsyncGenerator[Step]:
        rule, values, request = self.vote.rule, self.vote.values, self.request
        assert isinstance(rule, Screening)
        warm = values["warmup"]
        async with aclosing(self._in_waves(replace(request, id=f"{request.id}-warmup", n=warm), 0, draw)) as steps:
            async for step in steps:
                yield step
        if warm == request.n or self.box.closed:
            return
        threshold = rule.threshold(self.box.samples, values)
        least = -math.inf if threshold is None else threshold

        def watch() -> ConfidenceWatch:
            return ConfidenceWatch(TraceMonitor(values["window"], least), values["topk"])

        late = replace(request, n=request.n - warm, first_choice=request.first_choice + warm, watch=watch)
        async with aclosing(self._in_waves(late, warm, draw)) as steps:
            async for step in steps:
                yield step

    async def _chained(self, draw: Draw) -> AsyncGenerator[Step]:
        """Attempts have what room there is behind the ones that they are shown."""
        request = self.request
        chain = Chain(request.n, self.vote.values["history"])
        ids = request.prompt_ids
        cached = 0  # of all prompts so far
        while not chain.done:
            index, before = len(chain.attempts), cached
            attempt = replace(
                request,
                id=f"{request.id}-{index}",
                prompt_ids=ids,
                n=1,
                first_choice=request.first_choice + index,
                max_tokens=min(request.max_tokens, self.longest - len(ids)),
                prompt_logprobs=None if index else request.prompt_logprobs,
            )
            async with aclosing(draw(attempt, index, self._enough)) as steps:
                async for step in steps:
                    cached = step.cached_tokens = before + step.cached_tokens
                    yield step
            if self.box.closed:
                return
            chain.add(self.box.samples[index].text)
            if not chain.done:
                ids = await self._after(chain)

    def _enough(self) -> bool:
        return self.box.closed

    async def _after(self, chain: Chain) -> tuple[int, ...]:
        """The prompt of the next attempt; it ends the chain if there is no room for it."""
        assert self.problem.follow is not None
        try:
            ids = tuple((await self.problem.follow(chain)).ids)
        except ApiError as error:
            if error.code != "context_length_exceeded":
                raise
            ids = ()
        if not 0 < len(ids) < self.longest:
            chain.stop()
            self.flags = ("chain_truncated",)
        else:
            self.extra_prompts += len(ids)
        return ids


class ConfidenceWatch:
    """Ends a choice whose tokens the model has become unsure of."""

    reason = ABORTED

    def __init__(self, monitor: TraceMonitor, k: int) -> None:
        self._monitor = monitor
        self._k = k

    def feed(self, score: TokenScore) -> bool:
        top = score.top[: self._k]
        return self._monitor.feed(-math.fsum(logprob for _, logprob in top) / len(top))
