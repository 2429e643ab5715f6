"""What a chain did to one token's row, stage by stage, as plain data for people.

Probabilities, not logits; entropies in nats; everything finite. Made by `samplers/recorder.py`, only when asked for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """One token before and after a stage."""

    token: int
    before: float  # 0: it cannot occur
    after: float


@dataclass(frozen=True, slots=True)
class StageTrace:
    """What one executed stage kept and removed."""

    name: str
    possible: tuple[int, int]  # tokens that can occur, before and after
    removed_mass: float  # probability, before the stage, of the tokens it made impossible
    entropy: tuple[float, float]
    drawn: tuple[float, float]  # the probability of the token drawn in the end
    candidates: tuple[Candidate, ...]  # the same tokens for every stage of the row
    random: tuple[float, ...] = ()  # numbers in (0, 1) that the stage asked for


@dataclass(frozen=True, slots=True)
class DrawTrace:
    """How the token was picked from the last row."""

    name: str  # of the draw, or 'greedy'
    random: tuple[float, ...] = ()  # numbers in (0, 1) that decided
    interval: tuple[float, float] | None = (
        None  # the token's share of [0, 1) by token id, where the number fell into it
    )


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """One generated token: the model's row, the stages in executed order, the draw."""

    token: int
    probability: float  # by the model
    possible: int
    entropy: float
    candidates: tuple[tuple[int, float], ...]  # (token, the model's probability), as listed by the stages
    stages: tuple[StageTrace, ...]
    draw: DrawTrace
