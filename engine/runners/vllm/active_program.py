"""One request that a program decodes: every row it asks for is a request of one token to vLLM.

There is no fork inside vLLM. What branches share they find in its prefix cache, in whole pages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from vllm.inputs import tokens_input

from engine.mailbox import Mailbox
from engine.program_run import ProgramRun, Turn, rows_of
from engine.request import DecodeRequest, Finish, FinishReason, Output
from engine.runners.vllm.choice import Choice, key_of
from engine.runners.vllm.delivery import Delivery
from engine.runners.vllm.failures import runner_error
from engine.runners.vllm.outputs import prompt_output
from engine.runners.vllm.reports import Report, ReportInbox
from engine.runners.vllm.row_block import LogitRow
from engine.runners.vllm.row_inbox import RowInbox
from engine.runners.vllm.sampling import row_sampling
from samplers.failures import CONSTRAINT_UNSATISFIABLE
from samplers.programs.branch import Branch

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.inputs.engine import TokensInput
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

_TRIES = 3  # for a row that another one was written over, which takes an abort at the wrong moment


@dataclass(slots=True)
class _States:
    """The sampler states of a branch in vLLM's process."""

    number: int  # of the branch
    edition: int = 0  # of its tokens: states that have heard of tokens it has no more are left behind
    heard: int = 0  # output tokens they know of

    def key(self, request_id: str) -> str:
        return f"{key_of(request_id, self.number)}.{self.edition}"


class _RowFailedError(Exception):
    """The chain has failed on a row."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.message)
        self.finish = Finish(FinishReason.ERROR, error_code=report.code, message=report.message)


class ActiveProgram:
    """Lives in the event loop; the program itself runs in `thread`. `mailbox` is closed when the request has ended, or
    fails."""

    def __init__(
        self,
        request: DecodeRequest,
        run: ProgramRun,
        llm: AsyncLLM,
        reports: ReportInbox,
        rows: RowInbox,
        thread: Executor,
        rank: int,
    ) -> None:
        """Starts the program. thread: one for all programs of a runner, so that what they call need not be prepared for
        several; the event loop goes on meanwhile. rank: the data-parallel one that computes the rows."""
        self.mailbox = Mailbox()
        self._request, self._run, self._llm = request, run, llm
        self._reports, self._rows, self._thread, self._rank = reports, rows, thread, rank
        self._delivery = Delivery(self.mailbox, request.delivery_interval_s)
        self._arrived = time.time()  # its rows queue as if they had all come with it
        self._states: dict[Branch, _States] = {}
        self._created = 0  # branches
        self._prompt_known = False  # vLLM has been asked about the prompt
        self._over = False
        self._task = asyncio.ensure_future(self._decode())

    @property
    def unfinished(self) -> int:
        """Requests: 1, then 0."""
        return 1 - self._over

    def abort(self, choice: int | None = None) -> None:
        """End the request; what it has had by then is delivered. A program ends single choices itself, at stop strings
        too."""
        if choice is None and not self._over:
            self._end(self._run.finish(Finish(FinishReason.ABORT)))
            self._task.cancel()

    def fail(self, error: Exception) -> None:
        """End the request with an error, unless it has ended."""
        if not self._over:
            self.close()
            self.mailbox.fail(error)

    def close(self) -> None:
        """Nobody listens any more. vLLM aborts what is cancelled."""
        self._over = True
        self._task.cancel()

    async def _decode(self) -> None:
        """From the prompt to the end."""
        try:
            self._end(await self._turns())
        except Exception as error:
            self.fail(runner_error(error, self._request.id))
        finally:
            self._thread.submit(self._run.close)  # behind what of it may still be running there

    async def _turns(self) -> Output:
        """Everything but the last output, which is returned. Raises what vLLM raises."""
        run, loop = self._run, asyncio.get_running_loop()
        found: list[LogitRow] = []
        while True:
            try:
                turn = await loop.run_in_executor(self._thread, self._advance, found)
            except Exception as error:
                self._say(run.said())
                return run.fail(error)
            self._say(run.said())
            if not turn.asked:
                return run.end()
            self._follow(turn)
            try:
                found = await self._computed(turn.asked)
            except _RowFailedError as error:
                return run.finish(error.finish)

    def _advance(self, found: list[LogitRow]) -> Turn:
        """Runs in the thread."""
        if not found:
            return self._run.advance(None)
        raw, shaped = torch.stack([row.raw for row in found]), torch.stack([row.shaped for row in found])
        return self._run.advance(rows_of(self._request, raw, shaped, [row.drawn for row in found]))

    def _follow(self, turn: Turn) -> None:
        """Keep track of the branches and of what is known of them."""
        for branch in turn.made:
            self._states[branch] = _States(self._created)
            self._created += 1
            branch.origin = None  # there is no memory to share, and its ancestors need not be kept for it
        for branch in turn.released:
            del self._states[branch]
        for branch in turn.asked:
            states = self._states[branch]
            states.edition += states.heard > branch.kept
            states.heard = branch.kept = len(branch)

    async def _computed(self, branches: Sequence[Branch]) -> list[LogitRow]:
        """The rows behind these branches, all asked for at once; where one fails, the others are given up."""
        tasks = [asyncio.ensure_future(self._row(branch)) for branch in branches]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _row(self, branch: Branch) -> LogitRow:
        """The row behind a branch, as soon as there is room for it."""
        request, key = self._request, self._states[branch].key(self._request.id)
        first, self._prompt_known = not self._prompt_known, True
        prompt = tokens_input([*request.prompt_ids, *branch.ids], cache_salt=request.cache_salt or None)
        prompt["arrival_time"] = self._arrived
        for _ in range(_TRIES):
            place = await self._rows.take()
            self._reports.expect(key)
            try:
                choice = Choice.behind(request, branch, self._run.chain, key, place)
                found = await self._ask(prompt, row_sampling(choice, request.prompt_logprobs if first else None), key)
                report, row = self._reports.of(key, (0,), len(branch)), self._rows.read(place)
            finally:
                self._reports.forget(key)
                self._rows.give_back(place)
            if report is not None and report.code != CONSTRAINT_UNSATISFIABLE:  # an empty row is no fault
                raise _RowFailedError(report)
            if row is not None and found is not None:
                self._count(found, first)
                return row
        raise RuntimeError(f"the row behind {key} has not arrived")

    def _count(self, found: RequestOutput, first: bool) -> None:
        """Book what vLLM says of a row's prompt: behind the request's own, tokens that it has not found cached."""
        request = self._request
        assert found.prompt_token_ids is not None
        known = max(found.num_cached_tokens or 0, len(request.prompt_ids))
        self._run.computed += len(found.prompt_token_ids) - known
        if first:
            self._delivery.hold(prompt_output(request, found))

    async def _ask(self, prompt: TokensInput, params: SamplingParams, key: str) -> RequestOutput | None:
        """vLLM's only output; the row has been written when it comes. None: vLLM has given the request up."""
        outputs = self._llm.generate(
            prompt, params, key, priority=self._request.priority, data_parallel_rank=self._rank
        )
        async with aclosing(outputs):
            found = [one async for one in outputs]
        return found[-1] if found else None

    def _say(self, output: Output) -> None:
        if output.deltas:
            self._delivery.put(output)

    def _end(self, output: Output) -> None:
        if not self._over:
            self._over = True
            self._delivery.put(output, now=True)
            self.mailbox.close()
