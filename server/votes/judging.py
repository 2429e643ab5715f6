"""What scorers and judges say about the samples of a vote, for the rules that listen to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.generate import NO_TOKENS, Tokens
from server.state import ServedModel, ServerState
from server.votes.judge import Origin, consult
from server.votes.problem import Problem
from server.votes.request import VoteRequest
from server.votes.scoring import scored
from voting.contract import Judging, Sample


@dataclass(frozen=True)
class Judged:
    """The samples with their scores, and what it took."""

    samples: Sequence[Sample]
    flags: tuple[str, ...] = ()
    tokens: Tokens = NO_TOKENS


async def judged(
    vote: VoteRequest,
    problem: Problem,
    samples: Sequence[Sample],
    state: ServerState,
    model: ServedModel | None,
    origin: Origin,
) -> Judged:
    """model: the one that judges; without one nobody does. Raises a 400 where it cannot read all samples at once."""
    if "scores" in vote.rule.needs(vote.values):
        found = await scored(vote.values["scorer"], problem, samples, state)
        return Judged(found.samples, found.flags, Tokens(found.prompt_tokens))
    if isinstance(vote.rule, Judging) and model is not None:
        question = vote.rule.ask(problem.text, samples, vote.values, origin.seed)
        if question is not None:
            reply = await consult(model, question.prompt, origin)
            return Judged(vote.rule.answer(samples, question, reply.text), tokens=reply.tokens)
    return Judged(samples)
