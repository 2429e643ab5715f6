"""What one answer has cost: passes it waited for, and tokens that went through the model behind its prompt."""

from __future__ import annotations

from dataclasses import dataclass

from bench.sampler_runs import Answer


@dataclass(frozen=True)
class Cost:
    passes: int  # forward passes one after the other, the prompt's included
    tokens: int  # computed


def cost(answer: Answer) -> Cost:
    """A program says it itself. Samples without one share every pass, and their last tokens are never computed."""
    if answer.report:
        return Cost(answer.report["forward_passes"], answer.report["tokens_computed"])
    lengths = [len(sample.logprobs) for sample in answer.samples]
    return Cost(max(lengths), sum(lengths) - len(lengths))


def new_tokens(answer: Answer) -> int:
    """Tokens of a priority answer's choices that no earlier choice has: sum of (length - branch depth)."""
    return sum(len(sample.logprobs) - sample.details["branch_depth"] for sample in answer.samples)
