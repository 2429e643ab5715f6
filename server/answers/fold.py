"""Adds up the steps of a job: the whole response is this sum, and a stream reads its usage from it."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.request import TokenScore
from server.answers.logprobs import finite
from server.answers.trace import CANDIDATES
from server.choice import ChoiceEvent, End
from server.generate import NO_TOKENS, Step, Tokens, Vote
from server.plan import Plan
from server.speculation import report as speculation_report
from spec_decode.statistics import SpecStatistics


@dataclass
class Folded:
    """Everything received so far."""

    plan: Plan
    choices: dict[int, ChoiceEvent] = field(default_factory=dict)  # by index over all prompts
    prompt_scores: dict[int, list[TokenScore | None]] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)
    spent: Tokens = NO_TOKENS  # beyond the prompts themselves
    ended: int = 0
    absent: int = 0  # choices that programs did not find
    programs: dict[int, Mapping[str, Any]] = field(default_factory=dict)  # what programs say, by prompt
    votes: dict[int, Vote] = field(default_factory=dict)  # elections, by prompt
    speculation: SpecStatistics = field(default_factory=SpecStatistics)  # of all choices, shown or not
    told: bool = False  # a chunk has the report

    def note(self, step: Step) -> None:
        """What concerns prompts: scores, cache hits, programs, elections, speculation."""
        self.absent += step.absent
        self._spend(step.spent)
        if step.speculation is not None:
            self.speculation.absorb(step.speculation)
        if step.vote is not None:
            self.votes[step.prompt] = step.vote
        if step.report is not None:
            self.programs[step.prompt] = step.report
        self.cached[step.prompt] = max(self.cached.get(step.prompt, 0), step.cached_tokens)
        if step.prompt_scores is not None:
            self.prompt_scores[step.prompt] = step.prompt_scores

    def count(self, event: ChoiceEvent) -> None:
        if self.plan.job.election is None:  # which counts the tokens of all samples itself
            self._spend(Tokens(0, len(event.token_ids)))
        self.ended += event.end is not None

    def _spend(self, tokens: Tokens) -> None:
        self.spent = Tokens(self.spent.prompt + tokens.prompt, self.spent.completion + tokens.completion)

    def add(self, event: ChoiceEvent) -> None:
        """Append to the choice's result."""
        self.choices.setdefault(event.choice, ChoiceEvent(event.choice)).absorb(event)

    @property
    def complete(self) -> bool:
        prompts = len(self.plan.prompts)
        reported = self.plan.chain.program is None or len(self.programs) == prompts
        return reported and self.ended + self.absent == prompts * self.plan.job.shown

    @property
    def listed(self) -> int:
        """How many probabilities and records of samples the response lists, about."""
        job = self.plan.job
        k = max((request.logprobs or 0 for request in job.requests), default=0)
        prompts = sum(map(len, self.prompt_scores.values())) * job.shown
        traced = 2 * CANDIDATES * (1 + len(self.plan.chain.stages)) * sum(len(c.traces) for c in self.choices.values())
        scored = (1 + k) * (prompts + sum(len(choice.entries) for choice in self.choices.values()))
        return traced + scored + self.reported

    @property
    def reported(self) -> int:
        """Size of what elections say so far."""
        return sum(vote.size for vote in self.votes.values())

    def usage(self) -> dict[str, Any]:
        prompt = sum(len(one.ids) for one in self.plan.prompts) + self.spent.prompt
        completion = self.spent.completion
        return usage(Tokens(prompt, completion), sum(self.cached.values()))

    def tell(self) -> dict[str, Any]:
        """What the chunk with the report gets."""
        self.told = True
        return {"drafthouse": self.report()}

    def report(self) -> dict[str, Any]:
        """The `drafthouse` object: what was actually used, in the form a request would say it."""
        order = {"sampler_order": "given"} if self.plan.chain.given_order else {}
        return {
            "sampler": self.plan.sampler_report,
            **order,
            "spec_decode": speculation_report(self.plan.speculation, self.speculation),
            "voting": self._voting(),
            "experiment": None,
            "seed": self.plan.seed,
            **({} if self.plan.boundary is None else {"prompt_boundary": self.plan.boundary}),
            **self._program(),
        }

    def _voting(self) -> Any:
        """What the elections say."""
        return self._by_prompt({prompt: vote.report() for prompt, vote in self.votes.items()}) if self.votes else None

    def _program(self) -> dict[str, Any]:
        """What the programs say."""
        return {} if self.plan.chain.program is None else {"program": self._by_prompt(self.programs)}

    def _by_prompt(self, said: Mapping[int, Mapping[str, Any]]) -> Any:
        """An object, or a list of them where there are several prompts."""
        reports = [said.get(prompt) for prompt in range(len(self.plan.prompts))]
        return reports[0] if len(reports) == 1 else reports


def usage(tokens: Tokens, cached: int) -> dict[str, Any]:
    """cached: tokens of prompts that the prefix cache had."""
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.prompt + tokens.completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def fold(plan: Plan, steps: AsyncIterable[Step]) -> Folded:
    """All steps at once."""
    folded = Folded(plan)
    async for step in steps:
        folded.note(step)
        for event in step.events:
            folded.count(event)
            folded.add(event)
    return folded


def end_fields(end: End) -> dict[str, Any]:
    """The part of a choice that tells how it ended."""
    fields: dict[str, Any] = {
        "finish_reason": end.reason,
        "stop_reason": end.stop_reason,
        "cumulative_logprob": None if end.cumulative_logprob is None else finite(end.cumulative_logprob),
    }
    if end.details:
        fields["drafthouse"] = dict(end.details)
    return fields if end.failure is None else fields | {"failure": end.failure}
