"""The engine thread over a fake model: scheduling, preemption, forks, aborts, faults."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable

import pytest

from engine.admission import QueueLimits
from engine.engine import Engine
from engine.executor import StepResult
from engine.request import DecodeRequest, Finish, FinishReason
from engine.runners.base import EngineFailed, Overloaded, TooLarge
from engine.scheduler import Work
from engine.sequence import Sequence
from tests.engine.fake_executor import FakeExecutor, collect, continuation, fake_engine, request


async def idle(engine: Engine, executor: FakeExecutor) -> None:
    """Wait for the engine to come to rest, then check that nothing is held."""
    for _ in range(500):
        stats = engine.stats()
        if not stats.requests_running and not stats.requests_waiting and not stats.slots_in_use:
            break
        await asyncio.sleep(0.01)
    executor.pages.check_integrity([])
    assert not executor.slots
    assert engine.stats().kv_pages_in_use == 0
    assert executor.pages.free + executor.pages.cached + 1 == executor.pages.num_pages


@contextlib.asynccontextmanager
async def running(**sizes: int):
    engine, executor, scheduler = fake_engine(**sizes)
    try:
        yield engine, executor, scheduler
        await idle(engine, executor)
    finally:
        await asyncio.to_thread(engine.close, 5)


async def test_one_request_gives_the_models_tokens() -> None:
    async with running() as (engine, _, _):
        asked = request("a", [1, 2, 3], 10)
        assert (await collect(engine, asked))[0] == continuation(asked, 0)


async def test_long_prompts_are_computed_in_chunks_within_the_budget() -> None:
    async with running(max_batch_tokens=8) as (engine, executor, _):
        asked = [request(f"r{i}", list(range(10 + 7 * i)), 5) for i in range(4)]
        results = await asyncio.gather(*[collect(engine, one) for one in asked])
        assert [r[0] for r in results] == [continuation(one, 0) for one in asked]
        assert max(executor.batches) <= 8


async def test_choices_compute_the_prompt_once() -> None:
    async with running() as (engine, executor, _):
        asked = request("a", list(range(20)), 6, n=5)
        result = await collect(engine, asked)
        assert result == {i: continuation(asked, i) for i in range(5)}
        assert sum(executor.batches) == 20 + 5 * (6 - 1)


async def test_more_choices_than_slots_still_finish() -> None:
    async with running(max_seqs=3) as (engine, _, _):
        asked = request("a", list(range(9)), 6, n=10)
        assert await collect(engine, asked) == {i: continuation(asked, i) for i in range(10)}


async def test_choices_do_not_wait_behind_the_prompt_of_another_request() -> None:
    async with running(num_pages=64, max_batch_tokens=8) as (engine, executor, _):
        execute, together = executor.execute, []

        def watch(works: list[Work]) -> StepResult:
            together.append({work.sequence.active.request.id: 0 for work in works})
            for work in works:
                together[-1][work.sequence.active.request.id] += 1
            return execute(works)

        executor.execute = watch
        asked = [request("choices", list(range(10)), 6, n=4), request("long", list(range(100)), 3)]
        results = await asyncio.gather(*[collect(engine, one) for one in asked])
        assert results == [{i: continuation(one, i) for i in range(one.n)} for one in asked]
        decoding = [step for step in together if step.get("choices", 0) > 1]
        assert [step["choices"] for step in decoding] == [4] * 5 and all("long" in step for step in decoding)


async def test_preemption_when_pages_run_out_changes_nothing() -> None:
    async with running(num_pages=14, max_seqs=8) as (engine, _, _):
        asked = [request(f"r{i}", [i, i + 1, i + 2], 30) for i in range(6)]
        results = await asyncio.gather(*[collect(engine, one) for one in asked])
        assert [r[0] for r in results] == [continuation(one, 0) for one in asked]
        assert engine.stats().preemptions > 0


async def test_priorities_with_all_slots_preempted_do_not_deadlock() -> None:
    async with running(num_pages=12, max_seqs=2) as (engine, _, _):
        asked = [request(f"r{i}", [i] * 5, 30, priority=-i) for i in range(5)]
        results = await asyncio.wait_for(asyncio.gather(*[collect(engine, one) for one in asked]), 20)
        assert [r[0] for r in results] == [continuation(one, 0) for one in asked]


async def test_a_repeated_prompt_is_served_from_the_cache() -> None:
    async with running() as (engine, executor, _):
        prompt = list(range(21))
        await collect(engine, request("a", prompt, 2))
        before = sum(executor.batches)
        cached = 0
        async for output in engine.stream(request("b", prompt, 2)):
            cached = max(cached, output.cached_tokens)
        assert cached == 20
        assert sum(executor.batches) - before == 2
        async for output in engine.stream(request("c", prompt, 2, cache_salt="other")):
            assert output.cached_tokens == 0


async def test_prompt_scores_cover_the_whole_prompt_in_any_chunking() -> None:
    async with running(max_batch_tokens=8) as (engine, _, _):
        prompt = list(range(40, 61))
        for attempt in range(2):  # the second time the prefix is cached and must still be scored
            scores = None
            async for output in engine.stream(request(f"s{attempt}", prompt, 0, prompt_logprobs=1)):
                scores = output.prompt_scores or scores
            assert scores[0] is None
            assert [score.logprob for score in scores[1:]] == [-float(t) for t in prompt[1:]]


@pytest.mark.parametrize("first", [1, 2, 4, 5, 8, 9, 20, 21])
async def test_prompt_tokens_that_nobody_asks_about_may_come_from_the_cache(first: int) -> None:
    async with running(max_batch_tokens=8, page_size=4) as (engine, executor, _):
        prompt = list(range(40, 61))
        await collect(engine, request("before", prompt, 0))
        executor.batches.clear()
        asked = request("a", prompt, 0, prompt_logprobs=0, scored_from=first)
        *_, last = [output async for output in engine.stream(asked)]
        assert last.prompt_scores[:first] == [None] * first
        assert [score.logprob for score in last.prompt_scores[first:]] == [-float(t) for t in prompt[first:]]
        assert last.cached_tokens == (first - 1) // 4 * 4  # whole pages before the row that scores the first of them
        assert sum(executor.batches) == len(prompt) - last.cached_tokens


async def test_scoring_goes_on_after_preemption() -> None:
    async with running(num_pages=12, max_batch_tokens=8, page_size=4) as (engine, _, scheduler):
        prompts = [[i] * 4 + list(range(20)) for i in range(4)]
        asked = [request(f"r{i}", prompt, 3, prompt_logprobs=0, scored_from=13) for i, prompt in enumerate(prompts)]

        async def scores(one: DecodeRequest) -> list[object]:
            return [output.prompt_scores async for output in engine.stream(one)][-1]

        for prompt, known in zip(prompts, await asyncio.gather(*map(scores, asked)), strict=True):
            assert known[:13] == [None] * 13
            assert [score.logprob for score in known[13:]] == [-float(t) for t in prompt[13:]]
        assert scheduler.preemptions


async def test_choices_that_wait_for_a_slot_do_not_score_the_prompt_again() -> None:
    async with running(max_seqs=2) as (engine, executor, _):
        asked = request("a", list(range(21)), 2, n=6, prompt_logprobs=1)
        assert await collect(engine, asked) == {i: continuation(asked, i) for i in range(6)}
        assert sum(executor.batches) == 21 + 6 + 4  # the prompt, each choice's second token, one prompt token of four


async def test_eos_ends_a_choice_but_not_before_min_tokens() -> None:
    async with running() as (engine, _, _):
        plain = continuation(request("x", [5, 6], 12), 0)
        asked = request("a", [5, 6], 12, eos_token_ids=frozenset({plain[3]}))
        finish = None
        async for output in engine.stream(asked):
            for delta in output.deltas.values():
                finish = delta.finish or finish
        assert finish.reason is FinishReason.STOP and finish.stop_token_id == plain[3]
        assert (await collect(engine, asked_again(asked, "b", 0)))[0] == plain[: plain.index(plain[3]) + 1]
        assert len((await collect(engine, asked_again(asked, "c", 12)))[0]) == 12


def asked_again(asked, name: str, min_tokens: int):
    return request(name, list(asked.prompt_ids), 12, eos_token_ids=asked.eos_token_ids, min_tokens=min_tokens)


@pytest.mark.parametrize("after", range(6))
async def test_abort_at_any_step_leaks_nothing(after: int) -> None:
    async with running(max_batch_tokens=8) as (engine, _, _):
        others = asyncio.gather(*[collect(engine, request(f"o{i}", [i] * 9, 12)) for i in range(3)])
        stream = engine.stream(request("a", list(range(30)), 40, n=3))
        seen = 0
        async for _ in stream:
            seen += 1
            if seen > after:
                break
        await stream.aclose()
        results = await others
        assert [r[0] for r in results] == [continuation(request("x", [i] * 9, 12), 0) for i in range(3)]


async def test_aborting_one_choice_leaves_the_others() -> None:
    async with running() as (engine, _, _):
        asked = request("a", [1, 2, 3], 200, n=3)
        finishes, tokens = {}, {i: [] for i in range(3)}
        async for output in engine.stream(asked):
            for choice, delta in output.deltas.items():
                tokens[choice] += delta.token_ids
                if delta.finish is not None:
                    finishes[choice] = delta.finish.reason
            if 1 not in finishes:
                engine.abort("a", 1)
        assert finishes == {0: FinishReason.LENGTH, 1: FinishReason.ABORT, 2: FinishReason.LENGTH}
        assert tokens[0] == continuation(asked, 0) and tokens[2] == continuation(asked, 2)


async def test_unknown_aborts_are_ignored() -> None:
    async with running() as (engine, _, _):
        engine.abort("nobody")
        engine.abort("nobody", 3)
        asked = request("a", [1], 3)
        assert (await collect(engine, asked))[0] == continuation(asked, 0)


async def test_random_traffic_with_cancellations_comes_to_rest() -> None:
    rng = random.Random(3)
    async with running(num_pages=40, max_seqs=6, max_batch_tokens=16) as (engine, _, _):

        async def one(i: int) -> None:
            asked = request(
                f"r{i}", [rng.randrange(5) for _ in range(rng.randint(1, 25))], rng.randint(1, 20), n=rng.randint(1, 3)
            )
            if rng.random() < 0.4:
                stream = engine.stream(asked)
                async for _ in stream:
                    if rng.random() < 0.3:
                        break
                await stream.aclose()
            else:
                assert await collect(engine, asked) == {c: continuation(asked, c) for c in range(asked.n)}

        await asyncio.gather(*[one(i) for i in range(120)])


async def test_requests_that_can_never_fit_are_refused() -> None:
    async with running(num_pages=8) as (engine, _, _):
        with pytest.raises(TooLarge):
            await collect(engine, request("a", [1] * 20, 20))


async def test_a_full_queue_is_refused_and_recovers() -> None:
    engine, executor, _ = fake_engine(max_seqs=1, queue=QueueLimits(2, 10**6))
    try:
        tasks = [asyncio.create_task(collect(engine, request(f"r{i}", [i], 60))) for i in range(12)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [r for r in results if isinstance(r, Overloaded)]
        assert refused and len(refused) < 12
        assert all(isinstance(r, (dict, Overloaded)) for r in results)
        assert (await collect(engine, request("later", [1], 3)))[0]
        await idle(engine, executor)
    finally:
        await asyncio.to_thread(engine.close, 5)


async def test_a_failed_step_fails_its_requests_and_nothing_else() -> None:
    async with running() as (engine, executor, _):
        executor.fail_on_step = {3}
        finishes = []
        async for output in engine.stream(request("a", [1, 2], 20, n=2)):
            finishes += [delta.finish for delta in output.deltas.values() if delta.finish]
        assert [f.reason for f in finishes] == [FinishReason.ERROR] * 2
        assert all(f.error_code == "internal_error" for f in finishes)
        asked = request("b", [1, 2], 5)
        assert (await collect(engine, asked))[0] == continuation(asked, 0)
        assert engine.health().ready


async def test_parameters_that_cannot_be_written_fail_their_request_only() -> None:
    async with running() as (engine, executor, _):
        admit, executor.admit = executor.admit, lambda sequence: refuse(sequence, admit)
        others = [request(f"r{i}", [1, 2, i], 5) for i in range(3)]
        finishes, *results = await asyncio.gather(
            finished(engine, request("bad", [7, 7], 20, n=3)), *[collect(engine, one) for one in others]
        )
        assert [finish.error_code for finish in finishes] == ["internal_error"] * 3
        assert [result[0] for result in results] == [continuation(one, 0) for one in others]
        assert engine.health().ready


def refuse(sequence: Sequence, admit: Callable[[Sequence], None]) -> None:
    """Admit all but the request named bad, of which a half is written."""
    admit(sequence)
    if sequence.active.request.id == "bad" and sequence.choice == 1:
        raise OverflowError("a parameter too large for its slot")


async def finished(engine: Engine, asked: DecodeRequest) -> list[Finish]:
    outputs = [output async for output in engine.stream(asked)]
    return [delta.finish for output in outputs for delta in output.deltas.values() if delta.finish]


async def test_three_failed_steps_in_a_row_are_fatal_and_everybody_hears() -> None:
    engine, executor, _ = fake_engine(max_seqs=1)
    executor.fail_on_step = {1, 2, 3}
    results = await asyncio.gather(
        *[collect(engine, request(f"r{i}", [i], 5)) for i in range(5)], return_exceptions=True
    )
    assert any(isinstance(r, EngineFailed) for r in results)
    assert not engine.health().ready
    with pytest.raises(Overloaded):
        await collect(engine, request("later", [1], 3))


async def test_close_lets_running_requests_finish_and_refuses_new_ones() -> None:
    engine, _, _ = fake_engine()
    asked = request("a", [1, 2, 3], 200)
    task = asyncio.create_task(collect(engine, asked))
    await asyncio.sleep(0.005)
    closing = asyncio.create_task(asyncio.to_thread(engine.close, 10))
    await asyncio.sleep(0.005)
    with pytest.raises(Overloaded):
        await collect(engine, request("late", [1], 3))
    assert (await task)[0] == continuation(asked, 0)
    await closing


async def test_a_slow_consumer_gets_everything_in_one_merged_output() -> None:
    async with running() as (engine, _, _):
        asked = request("a", [1, 2, 3], 100)
        stream = engine.stream(asked)
        first = await anext(stream)
        tokens = list(first.deltas[0].token_ids)
        while engine.stats().requests_running:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        rest = [output async for output in stream]
        assert len(rest) <= 1  # none when everything was there before the consumer first looked
        assert tokens + [token for output in rest for token in output.deltas[0].token_ids] == continuation(asked, 0)


async def test_outputs_may_be_held_back_but_never_the_first_or_the_last() -> None:
    async with running() as (engine, _, _):
        asked = request("a", [1, 2, 3], 60, n=2, delivery_interval_s=100.0)
        outputs = [output async for output in engine.stream(asked)]
        assert len(outputs) <= 2  # the engine may be done before the consumer first looks
        for choice in range(2):
            tokens = [token for output in outputs for token in output.deltas[choice].token_ids]
            assert tokens == continuation(asked, choice)


@pytest.mark.parametrize("gone", [[0], [0, 1], [1, 0], [2, 1]])
async def test_choices_that_end_before_the_prompt_is_computed_do_not_strand_the_others(gone: list[int]) -> None:
    async with running(max_batch_tokens=4, max_seqs=4) as (engine, _, _):
        asked = request("a", list(range(60)), 5, n=4, prompt_logprobs=0)
        stream = engine.stream(asked)
        task = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        for choice in gone:
            engine.abort("a", choice)
        outputs = [await task, *[output async for output in stream]]
        tokens: dict[int, list[int]] = {i: [] for i in range(4)}
        for output in outputs:
            for choice, delta in output.deltas.items():
                tokens[choice] += delta.token_ids
        for choice in set(range(4)) - set(gone):
            assert tokens[choice] == continuation(asked, choice)
        scores = [output.prompt_scores for output in outputs if output.prompt_scores][-1]
        assert None not in scores[1:]


async def test_a_burst_of_prompts_is_limited_before_the_engine_has_seen_any() -> None:
    engine, executor, _ = fake_engine(queue=QueueLimits(1000, 100))
    try:
        tasks = [asyncio.create_task(collect(engine, request(f"r{i}", [i] * 30, 3))) for i in range(10)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(r, Overloaded) for r in results) >= 6
        await idle(engine, executor)
    finally:
        await asyncio.to_thread(engine.close, 5)
