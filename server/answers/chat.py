"""Chat completions on the wire: the whole body and the chunks of a stream, from the same events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from server.answers.fold import Folded, end_fields
from server.answers.logprobs import TokenNames, chat_content, prompt_logprobs
from server.answers.trace import sampler_trace
from server.choice import ChoiceEvent, Entry
from server.generate import Step
from server.plan import Plan


@dataclass(frozen=True)
class ChatAnswer:
    """One chat request's answer."""

    plan: Plan
    names: TokenNames
    top: int | None  # alternatives per token; None: no logprobs
    prompt_top: int | None
    token_ids: bool  # the client wants ids
    prefix: str = ""  # text put before the generated one (`echo`)

    def whole(self, folded: Folded) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        plan = self.plan
        body: dict[str, Any] = {
            "id": plan.id,
            "object": "chat.completion",
            "created": plan.created,
            "model": plan.model,
            "choices": [self._choice(event) for _, event in sorted(folded.choices.items())],
            "usage": folded.usage(),
            "system_fingerprint": plan.fingerprint,
            "drafthouse": folded.report(),
        }
        if self.prompt_top is not None:
            prompt = plan.prompts[0]
            scores = folded.prompt_scores.get(0, [])
            body["prompt_logprobs"] = prompt_logprobs(prompt.ids, scores, self.names, self.prompt_top)
        return body | self._prompt_ids()

    def _choice(self, event: ChoiceEvent) -> dict[str, Any]:
        assert event.end is not None
        choice = {
            "index": event.choice,
            "message": {"role": "assistant", "content": self.prefix + event.text, "refusal": None},
            "logprobs": self._logprobs(event.entries),
            **end_fields(event.end),
        }
        return choice | self._per_token(event) | self._own_prompt_ids(event)

    def _per_token(self, event: ChoiceEvent) -> dict[str, Any]:
        """Lists with one item per generated token, as far as they were asked for."""
        lists: dict[str, Any] = {"token_ids": event.token_ids} if self.token_ids else {}
        if self.plan.traced:
            lists["sampler_trace"] = sampler_trace(event.token_ids, event.traces, self.names)
        return lists

    def _logprobs(self, entries: list[Entry]) -> dict[str, Any] | None:
        if self.top is None:
            return None
        return {"content": chat_content(entries, self.names, self.top), "refusal": None}

    def _prompt_ids(self) -> dict[str, Any]:
        return {"prompt_token_ids": list(self.plan.prompts[0].ids)} if self.token_ids else {}

    def _own_prompt_ids(self, event: ChoiceEvent) -> dict[str, Any]:
        return {"prompt_token_ids": list(event.prompt_ids)} if self.token_ids and event.prompt_ids else {}

    # --- streaming --------------------------------------------------------------------------------------------

    def chunks(self, step: Step, folded: Folded, started: set[int]) -> Iterator[dict[str, Any]]:
        """The chunks of one step. `started` holds the choices whose role has been sent."""
        folded.note(step)
        for event in step.events:
            own_prompt: dict[str, Any] = {}
            if event.choice not in started:
                yield from self._opening(event, folded, first=not started)
                started.add(event.choice)
            else:  # an elected choice's, which its opening could not know
                own_prompt = self._own_prompt_ids(event)
            folded.count(event)
            lists = self._per_token(event)
            if event.text or self._shows_empty(event):
                delta = {"delta": {"content": event.text}, "logprobs": self._logprobs(event.entries)}
                chosen = {"index": event.choice, **delta, "finish_reason": None, **lists, **own_prompt}
                yield self._chunk(folded, chosen)
                lists, own_prompt = {name: [] for name in lists}, {}
            if event.end is not None:
                end = {"delta": {}, "logprobs": None, **end_fields(event.end)}
                chunk = self._chunk(folded, {"index": event.choice, **end, **lists, **own_prompt})
                yield self._last(chunk, folded)
        for progress in step.progress:
            nothing = {"index": step.prompt, "delta": {}, "logprobs": None, "finish_reason": None}
            yield self._chunk(folded, nothing) | {"voting_progress": asdict(progress)}

    def _shows_empty(self, event: ChoiceEvent) -> bool:
        """One token per chunk was asked for, and this one has no text of its own."""
        return self.plan.job.options.interval is not None and bool(event.token_ids) and event.end is None

    def _opening(self, event: ChoiceEvent, folded: Folded, first: bool) -> Iterator[dict[str, Any]]:
        opening = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        chunk = self._chunk(folded, {"index": event.choice, **opening, **self._own_prompt_ids(event)})
        yield chunk | self._prompt_ids() if first else chunk
        if self.prefix:
            prefix = {"delta": {"content": self.prefix}, "logprobs": None, "finish_reason": None}
            yield self._chunk(folded, {"index": event.choice, **prefix})

    def _chunk(self, folded: Folded, choice: dict[str, Any]) -> dict[str, Any]:
        return self._frame([choice], folded.usage() if self.plan.continuous_usage else None)

    def _last(self, chunk: dict[str, Any], folded: Folded) -> dict[str, Any]:
        """Adds the report where no usage chunk follows."""
        if folded.complete and not self.plan.include_usage:
            return chunk | folded.tell()
        return chunk

    def closing(self, folded: Folded) -> Iterator[dict[str, Any]]:
        """What follows the last choice's end."""
        if not folded.told:  # a usage chunk is wanted, or a program went on after its last choice
            yield self._frame([], folded.usage() if self.plan.include_usage else None) | folded.tell()

    def _frame(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        plan = self.plan
        frame: dict[str, Any] = {
            "id": plan.id,
            "object": "chat.completion.chunk",
            "created": plan.created,
            "model": plan.model,
            "system_fingerprint": plan.fingerprint,
            "choices": choices,
        }
        if plan.include_usage or usage is not None:
            frame["usage"] = usage
        return frame
