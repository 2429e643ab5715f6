"""One request while vLLM decodes it: a task per choice reads vLLM's outputs, a mailbox takes what they come to."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from vllm.inputs import tokens_input

from engine.mailbox import Mailbox
from engine.request import DecodeRequest, Delta, Finish, FinishReason, Output, Watch
from engine.runners.vllm.choice import key_of
from engine.runners.vllm.delivery import Delivery
from engine.runners.vllm.failures import runner_error
from engine.runners.vllm.outputs import delta_of, prompt_output
from engine.runners.vllm.reports import ReportInbox
from engine.runners.vllm.sampling import asks_more, sampling_of
from engine.runners.vllm.statistics import drafts_of
from spec_decode.statistics import SpecStatistics

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM


class ActiveRequest:
    """Lives in the event loop. `mailbox` is closed when the last choice has ended, or fails."""

    def __init__(
        self,
        request: DecodeRequest,
        native: bool,
        llm: AsyncLLM,
        reports: ReportInbox,
        rank: int,
        filtered: bool = False,
    ) -> None:
        """Starts the choices. native: vLLM draws them itself; rank: the data-parallel one that computes them; filtered:
        vLLM draws from what the chain leaves."""
        self.mailbox = Mailbox()
        self._filtered = filtered
        # vLLM tells of the drafts of a choice only if it ends it itself
        self._untold = None if request.speculation is None else SpecStatistics(complete=False)
        self._request, self._native, self._llm, self._reports = request, native, llm, reports
        self._rank = rank
        self._delivery = Delivery(self.mailbox, request.delivery_interval_s)
        number = request.n if request.max_tokens else 1  # a prompt is scored once
        self._running = {choice: asyncio.ensure_future(self._run(choice)) for choice in range(number)}

    @property
    def unfinished(self) -> int:
        """Choices that have not ended."""
        return len(self._running)

    def abort(self, choice: int | None = None) -> None:
        """End a choice, or all of them; what they have had by then is delivered."""
        for number in list(self._running) if choice is None else [choice]:
            if number in self._running:
                finish = Finish(FinishReason.ABORT, speculation=self._untold)
                self._put(Output({number: Delta(number, finish=finish)}))

    def fail(self, error: Exception) -> None:
        """End the request with an error, unless it has ended."""
        if self._running:
            self.close()
            self.mailbox.fail(error)

    def close(self) -> None:
        """Nobody listens any more. vLLM aborts what is cancelled."""
        for task in self._running.values():
            task.cancel()
        self._running.clear()

    async def _run(self, choice: int) -> None:
        """One choice from its prompt to its end."""
        request, key = self._request, key_of(self._request.id, choice)
        self._reports.expect(key)
        try:
            prompt = tokens_input([*request.prompt_ids, *request.begun], cache_salt=request.cache_salt or None)
            params = sampling_of(request, choice, self._native, self._filtered)
            position, watch = len(request.begun), None if request.watch is None else request.watch()
            generated = self._llm.generate(
                prompt, params, key, priority=request.priority, data_parallel_rank=self._rank
            )
            async with aclosing(generated) as outputs:
                async for one in outputs:
                    output = self._read(one, choice)
                    for delta in output.deltas.values():
                        self._explain(delta, key, position)
                        self._cut(delta, key, position, watch)
                        position += len(delta.token_ids)
                    self._put(output)
                    if choice not in self._running:
                        return
        except Exception as error:
            self.fail(runner_error(error, request.id))
        finally:
            self._reports.forget(key)

    def _read(self, found: RequestOutput, choice: int) -> Output:
        """What vLLM says; of the prompt only to the first choice, after which the others find it cached. Without tokens
        to generate vLLM's only token means nothing."""
        request = self._request
        output = prompt_output(request, found) if choice == 0 else Output()
        if request.max_tokens == 0:
            output.scored = found.finished
        else:
            delta = output.deltas[choice] = delta_of(choice, found.outputs[0], request.logprobs)
            told = found.outputs[0].spec_decode_metrics
            if delta.finish is not None and self._untold is not None:
                delta.finish = replace(delta.finish, speculation=self._untold if told is None else drafts_of(told))
        return output

    def _explain(self, delta: Delta, key: str, position: int) -> None:
        """Add what the chain has been asked about the tokens, up to one that it has not drawn."""
        for at in range(len(delta.token_ids) if asks_more(self._request) else 0):
            account = self._reports.account(key, position + at)
            if account is None:
                assert self._reports.of(key, delta.token_ids, position) is not None, "nothing was said of a token"
                return
            if account.score is not None:
                delta.scores[at] = account.score
            if account.trace is not None:
                delta.traces.append(account.trace)

    def _cut(self, delta: Delta, key: str, position: int, watch: Watch | None) -> None:
        """End the delta where its watch says so, or where the chain has found no token.

        position: of the delta's first token in the output.
        """
        count, finish = len(delta.token_ids), None
        report = self._reports.of(key, delta.token_ids, position)
        if report is not None:
            count = max(0, report.position - position)
            finish = Finish(FinishReason.ERROR, error_code=report.code, message=report.message)
            self._reports.count(report)
        ends = delta.finish is not None and finish is None  # its last token ends it anyway
        for at, score in enumerate(delta.scores[: count - ends] if watch is not None else ()):
            assert watch is not None
            if watch.feed(score):
                count, finish = at + 1, Finish(FinishReason.LENGTH, details={"ended_early": watch.reason})
                break
        if finish is not None:
            delta.finish = replace(finish, speculation=self._untold)
            for values in (delta.token_ids, delta.logprobs, delta.scores, delta.traces):
                del values[count:]

    def _put(self, output: Output) -> None:
        """Deliver an output now, or with later ones; it may end choices."""
        ended = list(self._running) if output.scored else [n for n, one in output.deltas.items() if one.finish]
        for number in ended:
            task = self._running.pop(number)
            if task is not asyncio.current_task():
                task.cancel()
        self._delivery.put(output, now=bool(ended))
        if not self._running:
            self.mailbox.close()
