"""What goes wrong below the engine, and who hears of it: NaN in the cache, short memory, a dead engine thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import torch

from engine.engine import Engine
from engine.executor import StepResult
from engine.mailbox import Mailbox
from engine.request import DecodeRequest, Finish, FinishReason
from engine.runners.base import EngineFailed, Overloaded
from engine.runners.torch.loader import check
from engine.runners.torch.runner import TorchRunner
from engine.runners.torch.step import Step
from engine.scheduler import Work
from engine.settings import EngineSettings
from samplers.chain import resolve
from tests.engine.fake_executor import collect, continuation, fake_engine, request
from tests.engine.test_engine import running
from tests.engine.tiny_models import VOCABULARY, tiny_model

SECONDS = 5  # after which a request counts as hanging


async def finishes(engine: Engine, asked: DecodeRequest) -> list[Finish]:
    outputs = [output async for output in engine.stream(asked)]
    return [delta.finish for output in outputs for delta in output.deltas.values() if delta.finish]


# ---- NaN in cached keys and values


async def test_a_prompt_that_had_nan_is_computed_again_by_the_next_request() -> None:
    async with running() as (engine, executor, _):
        executor.spoil_on_step = {1}
        prompt = list(range(1, 22))
        ends = await finishes(engine, request("a", prompt, 5, n=4))
        assert [end.reason for end in ends] == [FinishReason.ERROR] * 4
        asked = request("b", prompt, 5)
        assert (await collect(engine, asked))[0] == continuation(asked, 0)
        assert executor.pages.cached and (await collect(engine, request("c", prompt, 5)))[0]


async def test_nan_that_comes_while_others_share_the_page_fails_nobody_else() -> None:
    """The second request attaches pages of the first; then those turn out to hold NaN."""
    async with running(max_batch_tokens=8) as (engine, executor, _):
        executor.spoil_on_step = {2}
        prompt = list(range(1, 31))
        first = asyncio.create_task(finishes(engine, request("a", prompt, 5)))
        while executor.steps < 3:
            await asyncio.sleep(0)
        asked = [request(f"b{i}", [*prompt, i], 12) for i in range(3)]
        results = await asyncio.gather(*[outcome(engine, one) for one in asked])
        assert [end.reason for end in await first] == [FinishReason.ERROR]
        for one, result in zip(asked, results, strict=True):
            assert result in (FinishReason.ERROR, continuation(one, 0))  # never wrong
        assert (await collect(engine, request("c", prompt, 5)))[0] == continuation(request("c", prompt, 5), 0)


async def outcome(engine: Engine, asked: DecodeRequest) -> FinishReason | list[int]:
    tokens: list[int] = []
    async for output in engine.stream(asked):
        tokens += output.deltas[0].token_ids
        if (end := output.deltas[0].finish) is not None and end.reason is FinishReason.ERROR:
            return end.reason
    return tokens


async def test_who_shares_a_damaged_page_computes_it_again() -> None:
    """Two choices share the prompt; the page gets its NaN from a step of the first alone."""
    async with running() as (engine, executor, scheduler):
        execute = executor.execute

        def spoil_one_choice(works: list[Work]) -> StepResult:
            if executor.steps == 3:
                executor.memory[works[0].sequence.branch.pages[1] * 4] = None
                alone, others = works[:1], works[1:]
                result = execute(alone)
                executor.steps -= 1
                executor.memory[works[0].sequence.branch.pages[1] * 4] = works[0].sequence.tokens[4]
                result.drawn += execute(others).drawn
                executor.memory[works[0].sequence.branch.pages[1] * 4] = None
                return result
            return execute(works)

        executor.execute = spoil_one_choice
        asked = request("a", list(range(10)), 20, n=3)
        tokens: dict[int, list[int]] = {i: [] for i in range(3)}
        ends = {}
        async for output in engine.stream(asked):
            for choice, delta in output.deltas.items():
                tokens[choice] += delta.token_ids
                if delta.finish is not None:
                    ends[choice] = delta.finish.reason
        assert sorted(ends.values()) == [FinishReason.ERROR, FinishReason.LENGTH, FinishReason.LENGTH]
        for choice, reason in ends.items():
            if reason is FinishReason.LENGTH:
                assert tokens[choice] == continuation(asked, choice)
        assert scheduler.preemptions == 2


@contextlib.asynccontextmanager
async def tiny_runner() -> AsyncIterator[TorchRunner]:
    settings = EngineSettings(page_size=4, max_seqs=8, max_batch_tokens=64, max_model_len=128, replay=False)
    runner = TorchRunner(lambda: check(tiny_model("llama"), settings), settings)
    try:
        yield runner
    finally:
        await runner.close(1)
        runner.executor.pages.check_integrity([])


async def answer(runner: TorchRunner, name: str, n: int = 1, salt: str = "") -> list[list[int]]:
    prompt = tuple(7 + i % 30 for i in range(30))
    chain = resolve({"temperature": 0.0}, VOCABULARY)
    tokens: list[list[int]] = [[] for _ in range(n)]
    async for output in runner.submit(DecodeRequest(name, prompt, chain, 1, 10, n, cache_salt=salt)):
        for choice, delta in output.deltas.items():
            tokens[choice] += delta.token_ids
    return tokens


async def test_nan_of_a_model_does_not_outlive_its_request() -> None:
    async with tiny_runner() as runner:
        right = await answer(runner, "elsewhere", salt="another cache")
        write, spoilt = runner.executor.pool.write, []

        def write_spoilt(layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
            if layer == 1 and len(spoilt) < 2:  # a step without numbers is computed twice
                spoilt.append(layer)
                key = key.clone()
                key[..., 13, :] = float("nan")
            write(layer, slots, key, value)

        runner.executor.pool.write = write_spoilt
        assert await answer(runner, "spoilt", n=8) == [[]] * 8
        assert await answer(runner, "later") == right


async def test_a_model_that_runs_out_of_memory_answers_in_smaller_steps() -> None:
    async with tiny_runner() as runner:
        right = await answer(runner, "before", salt="another cache")
        forward, failed = runner.executor.model.forward, []

        def run_out(step: Step) -> torch.Tensor:
            if step.rows > 10:
                failed.append(step.rows)
                raise torch.OutOfMemoryError("injected")
            return forward(step)

        runner.executor.model.forward = run_out
        assert await answer(runner, "a", n=3) == right * 3
        assert failed == [30, 15] and runner.scheduler.max_batch_tokens == 8


# ---- short device memory


async def test_steps_shrink_until_they_fit_and_nobody_notices() -> None:
    async with running(max_seqs=4, max_batch_tokens=32) as (engine, executor, scheduler):
        executor.fitting = 9
        asked = [request(f"r{i}", list(range(i, i + 25)), 10, n=2) for i in range(3)]
        results = await asyncio.gather(*[collect(engine, one) for one in asked])
        assert results == [{i: continuation(one, i) for i in range(2)} for one in asked]
        assert 4 <= scheduler.max_batch_tokens <= 9 and max(executor.batches) <= 9
        assert engine.health().ready


async def test_choices_of_a_step_that_did_not_fit_fork_in_a_later_one() -> None:
    async with running(max_seqs=4, max_batch_tokens=32) as (engine, executor, _):
        executor.fitting = 8
        asked = request("a", list(range(12)), 6, n=4)  # the first step is the whole prompt
        result = await asyncio.wait_for(collect(engine, asked), SECONDS)
        assert result == {i: continuation(asked, i) for i in range(4)}
        assert sum(executor.batches) == 12 + 4 * 5


async def test_only_a_step_of_the_smallest_size_that_does_not_fit_fails_its_requests() -> None:
    async with running(max_seqs=4, max_batch_tokens=32) as (engine, executor, scheduler):
        executor.fitting = 2
        ends = await finishes(engine, request("a", list(range(25)), 10))
        assert [end.error_code for end in ends] == ["internal_error"]
        assert scheduler.max_batch_tokens == 4
        executor.fitting = 32
        asked = request("b", list(range(25)), 10)
        assert (await collect(engine, asked))[0] == continuation(asked, 0)


async def test_requests_can_be_aborted_between_two_attempts() -> None:
    async with running(max_seqs=4, max_batch_tokens=32) as (engine, executor, scheduler):
        halve, executor.fitting = scheduler.halve, 8

        def abort_then_halve(works: list[Work]) -> bool:
            engine.abort("a", 1)
            engine.abort("a", 0)
            return halve(works)

        scheduler.halve = abort_then_halve
        asked = request("a", list(range(12)), 6, n=4)
        tokens = {i: [] for i in range(4)}
        async for output in engine.stream(asked):
            for choice, delta in output.deltas.items():
                tokens[choice] += delta.token_ids
        assert {i: tokens[i] for i in (2, 3)} == {i: continuation(asked, i) for i in (2, 3)}


# ---- the end of the engine


@pytest.mark.parametrize("damaged", [0, 1, 2])
async def test_a_fatal_error_reaches_everybody_whatever_is_broken(damaged: int) -> None:
    fatal: list[BaseException] = []
    engine, executor, scheduler = fake_engine(on_fatal=fatal.append)
    execute = executor.execute

    def break_down(works: list[Work]) -> StepResult:
        if executor.steps == 5:
            for sequence in scheduler.running[:damaged]:
                executor.pages._free.give([sequence.branch.pages[-1]])
            raise KeyboardInterrupt
        return execute(works)

    executor.execute = break_down
    tasks = [asyncio.wait_for(collect(engine, request(f"r{i}", [i] * 3, 20)), SECONDS) for i in range(4)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [EngineFailed] * 4
    await asyncio.to_thread(engine.close, 1)
    assert [type(error) for error in fatal] == [KeyboardInterrupt]
    assert not engine.health().ready and engine.stats().requests_running == 0


async def test_on_fatal_is_called_even_if_nobody_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fatal: list[BaseException] = []
    engine, executor, _ = fake_engine(max_seqs=1, on_fatal=fatal.append)
    executor.fail_on_step = {1, 2, 3}
    monkeypatch.setattr(engine._loop._outbox, "fail", lambda *_: 1 / 0)
    tasks = [asyncio.create_task(collect(engine, request(f"r{i}", [i], 5))) for i in range(3)]
    await asyncio.wait(tasks, timeout=SECONDS)
    await asyncio.to_thread(engine.close, 1)
    assert [type(error) for error in fatal] == [EngineFailed]


async def test_a_request_posted_after_the_thread_has_ended_is_refused() -> None:
    engine, _, _ = fake_engine()
    check = engine._admit_or_raise

    def end_meanwhile(asked: DecodeRequest) -> None:
        check(asked)
        engine.close(1)

    engine._admit_or_raise = end_meanwhile
    with pytest.raises(Overloaded):
        await asyncio.wait_for(collect(engine, request("a", [1], 3)), SECONDS)


async def test_a_request_posted_behind_the_last_look_at_the_inbox_is_failed() -> None:
    engine, _, _ = fake_engine()
    event_loop, fail = asyncio.get_running_loop(), engine._loop._outbox.fail
    late: list[asyncio.Task[object]] = []
    posted = asyncio.Event()

    async def submit() -> None:
        late.append(asyncio.create_task(collect(engine, request("late", [1], 3))))
        await asyncio.sleep(0)  # it is in the inbox now
        posted.set()

    def fail_then_post(mailboxes: list[Mailbox], error: Exception) -> None:
        fail(mailboxes, error)
        if not late:
            asyncio.run_coroutine_threadsafe(submit(), event_loop).result(SECONDS)

    engine._loop._outbox.fail = fail_then_post
    running_one = asyncio.create_task(collect(engine, request("a", [1, 2], 200)))
    await asyncio.sleep(0)
    engine._loop.stop()
    with pytest.raises(Overloaded):
        await asyncio.wait_for(running_one, SECONDS)
    await asyncio.wait_for(posted.wait(), SECONDS)
    with pytest.raises(Overloaded):
        await asyncio.wait_for(late[0], SECONDS)
    await asyncio.to_thread(engine.close, 1)
