"""One request while vLLM decodes it: a task per choice reads vLLM's outputs, a mailbox takes what they come to."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.inputs import tokens_input
from vllm.v1.engine.exceptions import EngineDeadError

from engine.mailbox import Mailbox
from engine.request import DecodeRequest, Delta, Finish, FinishReason, Output, Watch
from engine.runners.base import EngineFailed, Overloaded, Unsupported
from engine.runners.vllm.choice import key_of
from engine.runners.vllm.outputs import delta_of, prompt_scores_of
from engine.runners.vllm.reports import ReportInbox
from engine.runners.vllm.sampling import sampling_of
from engine.runners.vllm.statistics import drafts_of
from spec_decode.statistics import SpecStatistics

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger(__name__)


class ActiveRequest:
    """Lives in the event loop. `mailbox` is closed when the last choice has ended, or fails."""

    def __init__(
        self, request: DecodeRequest, native: bool, llm: AsyncLLM, reports: ReportInbox, filtered: bool = False
    ) -> None:
        """Starts the choices. native: vLLM draws them itself; filtered: it draws from what the chain leaves."""
        self.mailbox = Mailbox()
        self._filtered = filtered
        # vLLM tells of the drafts of a choice only if it ends it itself
        self._untold = None if request.speculation is None else SpecStatistics(complete=False)
        self._request, self._native, self._llm, self._reports = request, native, llm, reports
        self._held = Output()  # not in the mailbox yet
        self._delivered_at = 0.0  # time.monotonic of the last delivery; 0: nothing has been delivered
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
        prompt = tokens_input([*request.prompt_ids, *request.begun], cache_salt=request.cache_salt or None)
        params = sampling_of(request, choice, self._native, self._filtered)
        position, watch = len(request.begun), None if request.watch is None else request.watch()
        try:
            async with aclosing(self._llm.generate(prompt, params, key, priority=request.priority)) as outputs:
                async for one in outputs:
                    output = self._read(one, choice)
                    for delta in output.deltas.values():
                        self._cut(delta, key, position, watch)
                        position += len(delta.token_ids)
                    self._put(output)
                    if choice not in self._running:
                        return
        except EngineDeadError:
            self.fail(EngineFailed("vLLM's engine has died"))
        except GracefulHTTPError as error:
            self.fail(Overloaded(error.message))
        except VLLMClientError as error:
            self.fail(Unsupported(str(error)))
        except Exception as error:
            log.exception("request %s failed", request.id)
            self.fail(EngineFailed(f"vLLM failed: {type(error).__name__}"))
        finally:
            self._reports.forget(key)

    def _read(self, found: RequestOutput, choice: int) -> Output:
        """What vLLM says; of the prompt only to the first choice, after which the others find it cached. Without tokens
        to generate vLLM's only token means nothing."""
        request, output = self._request, Output()
        if choice == 0:
            output.cached_tokens = found.num_cached_tokens or 0
        if found.prompt_logprobs and request.prompt_logprobs is not None and choice == 0:
            positions: Any = found.prompt_logprobs[: len(request.prompt_ids)]
            top, first = request.prompt_logprobs, request.scored_from
            output.prompt_scores = prompt_scores_of(request.prompt_ids, positions, top, first)
        if request.max_tokens == 0:
            output.scored = found.finished
        else:
            delta = output.deltas[choice] = delta_of(choice, found.outputs[0], request.logprobs)
            told = found.outputs[0].spec_decode_metrics
            if delta.finish is not None and self._untold is not None:
                delta.finish = replace(delta.finish, speculation=self._untold if told is None else drafts_of(told))
        return output

    def _cut(self, delta: Delta, key: str, position: int, watch: Watch | None) -> None:
        """End the delta where its watch says so, or where the chain has found no token.

        position: of the delta's first token in the output.
        """
        count, finish = len(delta.token_ids), None
        report = self._reports.of(key, delta.token_ids, position)
        if report is not None:
            count = max(0, report.position - position)
            finish = Finish(FinishReason.ERROR, error_code=report.code, message=report.message)
        ends = delta.finish is not None and finish is None  # its last token ends it anyway
        for at, score in enumerate(delta.scores[: count - ends] if watch is not None else ()):
            assert watch is not None
            if watch.feed(score):
                count, finish = at + 1, Finish(FinishReason.LENGTH, details={"ended_early": watch.reason})
                break
        if finish is not None:
            delta.finish = replace(finish, speculation=self._untold)
            for values in (delta.token_ids, delta.logprobs, delta.scores):
                del values[count:]

    def _put(self, output: Output) -> None:
        """Deliver an output now, or with later ones; it may end choices."""
        self._held.absorb(output)
        ended = list(self._running) if output.scored else [n for n, one in output.deltas.items() if one.finish]
        for number in ended:
            task = self._running.pop(number)
            if task is not asyncio.current_task():
                task.cancel()
        now = time.monotonic()
        if ended or not self._delivered_at or now - self._delivered_at >= self._request.delivery_interval_s:
            self._delivered_at = now
            held, self._held = self._held, Output()
            self.mailbox.put(held)
        if not self._running:
            self.mailbox.close()
