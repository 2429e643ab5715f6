"""Programs whose rows come from vLLM give what they give elsewhere. A table stands for vLLM: no engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.request import DecodeRequest, FinishReason, Output
from engine.runners.base import EngineFailed
from engine.runners.vllm.chain_core import ChainCore
from engine.runners.vllm.choice import Choice
from engine.runners.vllm.extras import ProcessorSetup
from engine.runners.vllm.reports import ReportInbox, ReportSender
from engine.runners.vllm.row_block import opened
from engine.runners.vllm.row_inbox import RowInbox
from samplers.chain import Chain, resolve
from samplers.model_facts import NO_FACTS
from tests.engine.table_model import MAX_TOKENS, VOCABULARY, table_engine
from tests.engine.test_programs import Failing, registered
from tests.engine.test_programs_agree import ITEMS, TABLE, N, check_agreement, expected, request, whole

pytest.importorskip("vllm")

from engine.program_run import ProgramRun
from engine.runners.vllm.active_program import ActiveProgram

CPU = torch.device("cpu")
SLOTS = 3  # of rows, far fewer than are asked for at once


@dataclass
class Table:
    """Answers requests of one token as vLLM does: the chain's row first, then the output."""

    table: Tensor
    core: ChainCore
    asked: list[str] = field(default_factory=list)  # names of requests
    given_up: list[str] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    running: int = 0
    most: int = 0  # that ran at once
    stuck: Callable[[int], bool] = lambda number: False  # whether this request, counted from 0, is never answered

    async def generate(
        self, prompt: Any, params: Any, request_id: str, priority: int, data_parallel_rank: int
    ) -> AsyncIterator[Any]:
        ids, number = prompt["prompt_token_ids"], len(self.asked)
        self.asked.append(request_id)
        self.arrivals.append(prompt["arrival_time"])
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(60 if self.stuck(number) else 0)
            choice = Choice.unpack(json.loads(json.dumps(params.extra_args)), VOCABULARY)
            assert choice is not None and params.max_tokens == 1
            logits = self.table[len(ids) - 1, ids[-1]].clone()[None]
            self.core.draw(logits, {0: (self.core.seat(choice, ids, []), [])})
            yield SimpleNamespace(num_cached_tokens=0, prompt_logprobs=None, prompt_token_ids=ids)
        except (asyncio.CancelledError, GeneratorExit):
            self.given_up.append(request_id)
            raise
        finally:
            self.running -= 1


class Desk:
    """Everything that a program over vLLM needs beside vLLM."""

    def __init__(self, folder: Path, table: Tensor = TABLE, states: int = 64) -> None:
        self.rows = RowInbox(SLOTS, VOCABULARY)
        self.reports = ReportInbox(str(folder / "reports"))
        self.thread = ThreadPoolExecutor(1)
        setup = ProcessorSetup(NO_FACTS, VOCABULARY, states, str(folder / "reports"), self.rows.path, SLOTS)
        block = opened(self.rows.path, SLOTS, VOCABULARY)
        self.llm = Table(table, ChainCore(setup, CPU, ReportSender(setup.reports), block))

    def start(self, request: DecodeRequest) -> ActiveProgram:
        llm: Any = self.llm
        run = ProgramRun(request, NO_FACTS, VOCABULARY)
        return ActiveProgram(request, run, llm, self.reports, self.rows, self.thread, 0)

    async def answer(self, request: DecodeRequest) -> Output:
        return await whole(outputs(self.start(request)))

    def close(self) -> None:
        self.thread.shutdown()
        self.reports.close()
        self.rows.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with contextlib.closing(Desk(tmp_path)) as desk:
        yield desk
        assert desk.rows.free == SLOTS and not desk.llm.running


async def outputs(active: ActiveProgram) -> AsyncIterator[Output]:
    while (output := await active.mailbox.get()) is not None:
        yield output


def test_they_are_those_over_a_plain_function(desk: Desk) -> None:
    async def run() -> list[Output]:
        return list(await asyncio.gather(*(desk.answer(request(item, seed)) for seed, item in enumerate(ITEMS))))

    for seed, (item, output) in enumerate(zip(ITEMS, asyncio.run(run()), strict=True)):
        check_agreement(item, output, expected(item, seed))
    assert desk.llm.most == SLOTS


CHAINS: list[dict[str, Any]] = [
    {"sampler": ["eager"], "presence_penalty": 0.7},
    {"sampler": [{"name": "eager", "theta": 0.8}, "xtc"], "temperature": 0.9},
    {"sampler": [{"name": "tree", "rollout": "sample", "parallel": 2}, "min_p"], "draw": "gumbel"},
    {"sampler": ["priority"], "repetition_penalty": 1.4, "logit_bias": {"2": 1.0}},
    {"sampler": ["beam", {"name": "no_repeat_ngram", "no_repeat_ngram_size": 2}]},
]


@pytest.mark.parametrize("fields", CHAINS, ids=str)
def test_chains_give_what_they_give_in_the_other_runner(desk: Desk, fields: dict[str, Any]) -> None:
    asked = replace(request({"name": "priority"}, 5), chain=resolve(fields, VOCABULARY), n=4, logprobs=2)

    async def run() -> tuple[Output, Output]:
        engine, _ = table_engine(TABLE)
        try:
            return await desk.answer(asked), await whole(engine.stream(asked))
        finally:
            engine.close(1.0)

    ours, theirs = asyncio.run(run())
    assert ours.report is not None and theirs.report is not None
    assert ours.report["forward_passes"] == theirs.report["forward_passes"]
    assert ours.deltas.keys() == theirs.deltas.keys()
    for choice, delta in theirs.deltas.items():
        assert ours.deltas[choice] == delta


def test_rows_queue_as_if_they_had_come_with_their_request(desk: Desk) -> None:
    asyncio.run(desk.answer(request({"name": "eager", "theta": -1.0}, 1)))
    assert len(set(desk.llm.arrivals)) == 1 and len(desk.llm.arrivals) > MAX_TOKENS


def test_a_branch_keeps_its_states_while_it_grows(desk: Desk) -> None:
    """Of one that was cut they are made anew."""

    class Cutting(Failing):
        name = "cutting"

        def _run(self, task: Any) -> Any:
            rows = yield [task.root]
            rows = yield [task.root.push(rows.best(1)[0][0])]
            yield [task.root.push(rows.best(1)[0][0])]
            yield [task.root.truncate(1)]
            raise RuntimeError("on purpose")

    with registered(Cutting("")):
        asyncio.run(desk.answer(request({"name": "cutting"}, 1)))
    assert [name.rpartition("/")[2] for name in desk.llm.asked] == ["0.0", "0.0", "0.0", "0.1"]


@pytest.mark.parametrize("how", ["raises before it runs", "raises", "asks for nothing", "refuses", "leaves a hole"])
def test_a_program_that_fails_ends_its_own_request(desk: Desk, how: str) -> None:
    async def run() -> tuple[Output, Output]:
        other = request({"name": "beam"}, 2)
        failing, fine = await asyncio.gather(desk.answer(request({"name": "failing"}, 1)), desk.answer(other))
        return failing, fine

    with registered(Failing(how)):
        failing, fine = asyncio.run(run())
    assert len(failing.deltas) == N
    ends = {delta.finish.reason for delta in failing.deltas.values() if delta.finish is not None}
    assert FinishReason.ERROR in ends
    assert all(delta.finish is not None and not delta.finish.error_code for delta in fine.deltas.values())


def test_a_chain_that_fails_ends_its_own_request(desk: Desk) -> None:
    stack: Any = desk.llm.core._stack
    admit = stack.admit

    def admit_some(slot: int, chain: Chain, **rest: Any) -> None:
        if rest["seed"] == 1:
            raise ValueError("on purpose")
        admit(slot, chain, **rest)

    stack.admit = admit_some

    async def run() -> list[Output]:
        return list(await asyncio.gather(*(desk.answer(request({"name": "eager"}, seed)) for seed in (1, 2))))

    ended, other = asyncio.run(run())
    assert {delta.finish.error_code for delta in ended.deltas.values() if delta.finish} == {"internal_error"}
    check_agreement({"name": "eager"}, other, expected({"name": "eager"}, 2))


def test_an_empty_row_is_a_dead_end(desk: Desk) -> None:
    """The only token that is allowed may not follow itself."""
    chain = resolve({"sampler": "priority", "allowed_token_ids": [2], "bad_words_ids": [[2, 2]]}, VOCABULARY)
    output = asyncio.run(desk.answer(replace(request({"name": "priority"}, 1), chain=chain)))
    assert output.report is not None
    assert {one.finish.error_code for one in output.deltas.values() if one.finish} == {"constraint_unsatisfiable"}


@pytest.mark.parametrize("stuck", [0, 4], ids=["the prompt", "branches"])
def test_an_abort_leaves_nothing_behind(desk: Desk, stuck: int) -> None:
    desk.llm.stuck = lambda number: number >= stuck

    async def run() -> Output:
        active = desk.start(request({"name": "beam", "beam_width": 6}, 3))
        while len(desk.llm.asked) <= stuck:
            await asyncio.sleep(0.001)
        active.abort(2)  # one choice of a program cannot be
        assert active.unfinished
        active.abort()
        output = await whole(outputs(active))
        while desk.rows.free < SLOTS:
            await asyncio.sleep(0.001)
        assert not active.unfinished
        return output

    output = asyncio.run(run())
    assert {delta.finish.reason for delta in output.deltas.values() if delta.finish} == {FinishReason.ABORT}
    assert desk.llm.given_up


def test_a_row_that_another_was_written_over_is_asked_for_again(desk: Desk) -> None:
    """One that was given up may be written late, by another engine process."""
    read, lost = desk.rows.read, 2

    def overwritten(place: Any) -> Any:
        nonlocal lost
        lost -= 1
        return None if lost >= 0 else read(place)

    desk.rows.read = overwritten  # type: ignore[method-assign]
    output = asyncio.run(desk.answer(request({"name": "beam"}, 1)))
    check_agreement({"name": "beam"}, output, expected({"name": "beam"}, 1))


def test_a_row_that_never_comes_fails_the_request(desk: Desk) -> None:
    desk.rows.read = lambda place: None  # type: ignore[method-assign]
    with pytest.raises(EngineFailed):
        asyncio.run(desk.answer(request({"name": "beam"}, 1)))
