"""Small votes for tests: samples from answers, clusters of equal answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from voting.contract import VOTING_RULES, Cluster, Sample
from voting.outcome import Outcome, hold
from voting.rule import read_values

# of rules that cannot do without
REQUIRED: Mapping[str, dict[str, Any]] = {"bon": {"scorer": "judge"}}


def sample(index: int, answer: str | None, q: float = 0.5, **fields: Any) -> Sample:
    """A sample with its own token ids and everything a rule may need, unless `fields` say otherwise."""
    usual: dict[str, Any] = {
        "text": f"step {index}\nConfidence: {50 + index % 50}",
        "token_ids": (index, 1000 + index),
        "n_tokens": 2,
        "mean_logprob": math.log(q),
        "entropies": (1 - q, 1 - q),
        "confidences": (3 + q, 2 + q),
        "scores": {"judge": q},
    }
    return Sample(index, answer=answer, **(usual | fields))


def samples_of(*pairs: tuple[str | None, float]) -> list[Sample]:
    """Samples from (answer, q)."""
    return [sample(index, answer, q) for index, (answer, q) in enumerate(pairs)]


def clusters_of(samples: Sequence[Sample]) -> list[Cluster]:
    """Equal answers are equivalent and nothing else."""
    members: dict[str, list[int]] = {}
    for one in samples:
        if not one.abstains:
            members.setdefault(str(one.answer), []).append(one.index)
    return [Cluster(answer, answer, 0, tuple(indices)) for answer, indices in members.items()]


def vote(rule: str, samples: Sequence[Sample], **params: Any) -> Outcome:
    values = read_values(VOTING_RULES.get(rule), REQUIRED.get(rule, {}) | params, len(samples))
    return hold(samples, clusters_of(samples), VOTING_RULES.get(rule), values)


def weights(outcome: Outcome) -> dict[str, float]:
    """By answer."""
    return {one.answer: weight for one, weight in zip(outcome.clusters, outcome.tally.weights, strict=True)}


def shares(outcome: Outcome) -> dict[str, float | None]:
    return {one.answer: share for one, share in zip(outcome.clusters, outcome.shares, strict=True)}


def reordered(samples: Sequence[Sample], order: Sequence[int]) -> list[Sample]:
    """The same completions, drawn in another order."""
    return [replace(samples[old], index=new) for new, old in enumerate(order)]
