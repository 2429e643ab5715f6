"""Choices that are watched while they are drawn, and ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from engine.engine import Engine
from engine.executor import StepResult
from engine.request import DecodeRequest, Finish, FinishReason, TokenScore
from engine.scheduler import Work
from tests.engine.fake_executor import FakeExecutor, continuation, request
from tests.engine.test_engine import running


@dataclass
class At:
    """Ends its choice with its `last` token; may be asked no more then."""

    last: int
    reason: str = "seen_enough"
    seen: int = 0

    def feed(self, score: TokenScore) -> bool:
        assert self.seen < self.last, "has ended already"
        self.seen += 1
        assert score.logprob == -float(self.seen)
        return self.seen == self.last


def scored(executor: FakeExecutor) -> None:
    """Every token has a score, which says how many the choice has."""
    execute = executor.execute

    def with_scores(works: list[Work]) -> StepResult:
        result = execute(works)
        for one in result.drawn:
            known = len(one.sequence.tokens) - one.sequence.prompt_length
            one.scores = [TokenScore(-float(known + 1), 1, ())]
        return result

    executor.execute = with_scores  # type: ignore[method-assign]


def lengths(*last: int) -> Callable[[], At]:
    """Watches that end choice 0, 1, ... after so many tokens."""
    given = iter(last)
    return lambda: At(next(given))


async def gathered(engine: Engine, asked: DecodeRequest) -> dict[int, tuple[list[int], Finish]]:
    tokens: dict[int, list[int]] = {i: [] for i in range(asked.n)}
    finish: dict[int, Finish] = {}
    async for output in engine.stream(asked):
        for choice, delta in output.deltas.items():
            assert choice not in finish
            tokens[choice] += delta.token_ids
            if delta.finish is not None:
                finish[choice] = delta.finish
    return {choice: (tokens[choice], finish[choice]) for choice in tokens}


ENDED = Finish(FinishReason.LENGTH, details={"ended_early": "seen_enough"})


async def test_a_choice_ends_with_the_token_that_its_watch_says() -> None:
    async with running() as (engine, executor, _):
        scored(executor)
        asked = request("a", list(range(9)), 12, n=5, logprobs=0, watch=lengths(1, 4, 100, 11, 7))
        found = await gathered(engine, asked)
    for choice, length in enumerate((1, 4, 12, 11, 7)):
        tokens, finish = found[choice]
        assert tokens == continuation(asked, choice)[:length]
        assert finish == (Finish(FinishReason.LENGTH) if choice == 2 else ENDED)


async def test_the_end_of_a_text_and_the_limit_come_first() -> None:
    async with running() as (engine, executor, _):
        scored(executor)
        plain = request("a", [1, 2, 3], 6, n=2)
        stop = continuation(plain, 0)[3]
        asked = replace(plain, logprobs=0, eos_token_ids=frozenset({stop}), watch=lengths(4, 6))
        found = await gathered(engine, asked)
    assert found[0] == (continuation(plain, 0)[:4], Finish(FinishReason.STOP, stop))
    if stop not in continuation(plain, 1):
        assert found[1] == (continuation(plain, 1), Finish(FinishReason.LENGTH))


@pytest.mark.parametrize("sizes", [{"num_pages": 14}, {"max_seqs": 2}, {"max_batch_tokens": 4}])
async def test_preemption_and_waiting_change_nothing(sizes: dict[str, int]) -> None:
    asked = [
        request(f"r{i}", [i, i + 1, i + 2], 30, n=2, logprobs=0, watch=lengths(5 + 3 * i, 25 - 2 * i)) for i in range(6)
    ]
    async with running(**sizes) as (engine, executor, scheduler):
        scored(executor)
        found = await asyncio.gather(*[gathered(engine, one) for one in asked])
        assert scheduler.preemptions or "num_pages" not in sizes
    for i, (one, result) in enumerate(zip(asked, found, strict=True)):
        for choice, length in enumerate((5 + 3 * i, 25 - 2 * i)):
            assert result[choice] == (continuation(one, choice)[:length], ENDED)


async def test_other_requests_do_not_notice() -> None:
    async with running(num_pages=24) as (engine, executor, _):
        scored(executor)
        plain = [request(f"p{i}", [i] * 4, 20, n=2) for i in range(3)]
        watched = request("w", [9] * 4, 20, n=4, logprobs=0, watch=lengths(3, 3, 2, 9))
        *others, _ = await asyncio.gather(*[gathered(engine, one) for one in (*plain, watched)])
    for one, result in zip(plain, others, strict=True):
        assert {choice: tokens for choice, (tokens, _) in result.items()} == {
            choice: continuation(one, choice) for choice in range(2)
        }
