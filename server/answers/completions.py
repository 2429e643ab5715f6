"""Text completions on the wire: the whole body and the chunks of a stream, from the same events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from server.answers.fold import Folded, end_fields
from server.answers.logprobs import CompletionLogprobs, TokenNames, prompt_logprobs
from server.answers.trace import sampler_trace
from server.choice import ChoiceEvent
from server.generate import Step
from server.plan import Plan
from server.prompts import Layout, layout


@dataclass
class CompletionAnswer:
    """One completion request's answer."""

    plan: Plan
    names: TokenNames
    top: int | None  # alternatives per token; None: no logprobs
    prompt_top: int | None
    token_ids: bool  # the client wants ids
    echo: bool

    def __post_init__(self) -> None:
        self._layouts: dict[int, Layout] = {}
        self._echoed: dict[int, CompletionLogprobs] = {}  # by prompt

    def whole(self, folded: Folded) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        choices = [self._choice(event, folded, opening=True) for event in self._chosen(folded)]
        body = self._frame(choices, folded.usage()) | {"drafthouse": folded.report()}
        if self.token_ids and len(self.plan.prompts) == 1:
            body["prompt_token_ids"] = list(self.plan.prompts[0].ids)
        return body

    def _chosen(self, folded: Folded) -> Iterator[ChoiceEvent]:
        """The choices to return, renumbered where the best of more were asked for."""
        made, n = self.plan.job.shown, self.plan.n
        for prompt in range(len(self.plan.prompts)):
            numbers = range(prompt * made, (prompt + 1) * made)
            candidates = [folded.choices[number] for number in numbers if number in folded.choices]
            if n < made:
                candidates = sorted(candidates, key=_mean_logprob, reverse=True)[:n]
            for j, event in enumerate(candidates):
                yield replace(event, choice=prompt * n + j)

    def _choice(self, event: ChoiceEvent, folded: Folded, opening: bool) -> dict[str, Any]:
        """A choice, or the part of it that an event adds; the `opening` part carries what concerns the prompt."""
        number = event.choice // self.plan.n
        prompt = self.plan.prompts[number]
        shown = self._layout(number) if self.echo else None
        logprobs = None
        if self.top is not None:
            logprobs = self._echo(number, folded) if opening and self.echo else CompletionLogprobs(self.names, self.top)
            base = len(shown.text) if shown is not None else 0
            for entry in event.entries:
                logprobs.add(entry.token, entry.score, base + entry.at)
        choice: dict[str, Any] = {
            "index": event.choice,
            "text": shown.text + event.text if opening and shown is not None else event.text,
            "logprobs": logprobs.body() if logprobs is not None else None,
        }
        choice |= {"finish_reason": None, "stop_reason": None} if event.end is None else end_fields(event.end)
        if self.token_ids:
            choice["token_ids"] = event.token_ids
            if opening or event.prompt_ids:
                choice["prompt_token_ids"] = list(event.prompt_ids or prompt.ids)
        if self.plan.traced:
            choice["sampler_trace"] = sampler_trace(event.token_ids, event.traces, self.names)
        if opening and self.prompt_top is not None:
            scores = folded.prompt_scores[number]
            choice["prompt_logprobs"] = prompt_logprobs(prompt.ids, scores, self.names, self.prompt_top)
        return choice

    def _echo(self, prompt: int, folded: Folded) -> CompletionLogprobs:
        """Log-probabilities of a prompt, to which a choice adds its own."""
        assert self.top is not None
        if prompt not in self._echoed:
            listed = self._echoed[prompt] = CompletionLogprobs(self.names, self.top)
            ids, scores, shown = self.plan.prompts[prompt].ids, folded.prompt_scores[prompt], self._layout(prompt)
            for token, score, at in zip(ids, scores, shown.offsets, strict=True):
                listed.add(token, score, at)
        return self._echoed[prompt].copy()

    def _layout(self, prompt: int) -> Layout:
        if prompt not in self._layouts:
            continued = self.plan.job.requests[prompt].max_tokens > 0
            self._layouts[prompt] = layout(self.plan.served, self.plan.prompts[prompt], continued)
        return self._layouts[prompt]

    # --- streaming --------------------------------------------------------------------------------------------

    def chunks(self, step: Step, folded: Folded, started: set[int]) -> Iterator[dict[str, Any]]:
        """The chunks of one step. `started` holds the choices whose first chunk has been sent."""
        folded.note(step)
        for event in step.events:
            opening = event.choice not in started
            started.add(event.choice)
            folded.count(event)
            choice = self._choice(event, folded, opening)
            chunk = self._frame([choice], folded.usage() if self.plan.continuous_usage else None)
            if folded.complete and not self.plan.include_usage:
                chunk |= folded.tell()
            yield chunk
        for progress in step.progress:
            nothing = {"index": step.prompt, "text": "", "logprobs": None, "finish_reason": None, "stop_reason": None}
            usage = folded.usage() if self.plan.continuous_usage else None
            yield self._frame([nothing], usage) | {"voting_progress": asdict(progress)}

    def closing(self, folded: Folded) -> Iterator[dict[str, Any]]:
        """What follows the last choice's end."""
        if not folded.told:  # a usage chunk is wanted, or a program went on after its last choice
            yield self._frame([], folded.usage() if self.plan.include_usage else None) | folded.tell()

    def _frame(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        plan = self.plan
        frame: dict[str, Any] = {
            "id": plan.id,
            "object": "text_completion",
            "created": plan.created,
            "model": plan.model,
            "system_fingerprint": plan.fingerprint,
            "choices": choices,
        }
        if plan.include_usage or usage is not None:
            frame["usage"] = usage
        return frame


def _mean_logprob(event: ChoiceEvent) -> float:
    """Per generated token; a choice the engine could not finish comes last."""
    assert event.end is not None
    if event.end.failure is not None:
        return float("-inf")
    assert event.end.cumulative_logprob is not None
    return event.end.cumulative_logprob / max(1, len(event.token_ids))
