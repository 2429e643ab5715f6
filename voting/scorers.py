"""Scorers: what judges responses from outside, for the rules that read `Sample.scores`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Protocol

from samplers.registry import Registry
from voting.contract import Sample
from voting.rule import voters


class Scorer(Protocol):
    """Stateless; called from any thread. Higher is better."""

    name: ClassVar[str]

    def score(self, prompt: str, responses: Sequence[str]) -> Sequence[float]:
        """One score each, NaN for a response that cannot be scored; called once for all of a vote's responses."""
        ...


SCORERS: Registry[Scorer] = Registry("scorer", "drafthouse.scorers")


def with_scores(scorer: Scorer, prompt: str, samples: Sequence[Sample]) -> list[Sample]:
    """The samples with this scorer's scores. Equal texts are scored once; abstaining samples, and a single one, not at
    all. Raises ValueError for a scorer that gives another number of scores."""
    able = voters(samples)
    if len(able) < 2:
        return list(samples)
    texts = list(dict.fromkeys(sample.text for sample in able))
    scores = list(scorer.score(prompt, texts))
    if len(scores) != len(texts):
        raise ValueError(f"scorer '{scorer.name}' gave {len(scores)} scores for {len(texts)} responses")
    of = dict(zip(texts, map(float, scores), strict=True))
    return [
        sample if sample.abstains else replace(sample, scores={**sample.scores, scorer.name: of[sample.text]})
        for sample in samples
    ]
