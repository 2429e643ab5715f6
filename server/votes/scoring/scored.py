"""What scoring gives, and what everybody who scores has in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from server.votes.problem import Problem
from voting.contract import Sample

FAILED = "scorer_failed"  # flag: no sample has a score, the log says why
TOO_LONG = "scorer_context_exceeded"  # flag: some samples have none, for they do not fit into the model's context


class ScorerFailed(Exception):
    """The scorer has nothing to say about any sample. The message is for the operator."""


@dataclass(frozen=True)
class Scores:
    """What a scorer says about responses."""

    values: tuple[float, ...]  # one per response; not finite: it cannot be scored
    flags: tuple[str, ...] = ()
    prompt_tokens: int = 0  # that a served model had to read


class Judge(Protocol):
    """Whoever scores."""

    async def scores(self, problem: Problem, texts: Sequence[str]) -> Scores:
        """texts: distinct, at least one. Raises ScorerFailed."""
        ...


@dataclass(frozen=True)
class Scored:
    """The samples of a vote after scoring."""

    samples: tuple[Sample, ...]  # all, in the order given
    flags: tuple[str, ...] = ()
    prompt_tokens: int = 0  # that a served model had to read
