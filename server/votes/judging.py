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
    basis: range,
    state: ServerState,
    model: ServedModel | None,
    origin: Origin,
) -> Judged:
    """basis: of the samples, those that the answer is taken from; the others are not looked at. model: the one that
    judges; without one nobody does. Raises a 400 where it cannot read all samples at once."""
    counted = samples[basis.start : basis.stop]
    before, after = samples[: basis.start], samples[basis.stop :]
    if "scores" in vote.rule.needs(vote.values):
        found = await scored(vote.values["scorer"], problem, counted, state)
        return Judged((*before, *found.samples, *after), found.flags, Tokens(found.prompt_tokens))
    if isinstance(vote.rule, Judging) and model is not None:
        question = vote.rule.ask(problem.text, counted, vote.values, origin.seed)
        if question is not None:
            reply = await consult(model, question.prompt, origin)
            said = vote.rule.answer(counted, question, reply.text)
            return Judged((*before, *said, *after), tokens=reply.tokens)
    return Judged(samples)
