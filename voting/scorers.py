"""Scorers: what judges responses from outside, for the rules that read `Sample.scores`.

A rule's `scorer` is a name or, for a model, `{model, condition: none | prompt, unit: byte | token}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol

from samplers.contract import Param, SamplerError
from samplers.registry import Registry
from voting.contract import Sample
from voting.rule import voters

LIKELIHOOD = "likelihood"  # the scorer that nobody has to be asked for: the sample's own mean log-probability
CONDITION = Param("condition", str, "none", choices=("none", "prompt"))
UNIT = Param("unit", str, "byte", choices=("byte", "token"))


class Scorer(Protocol):
    """Stateless; called from any thread. Higher is better."""

    name: ClassVar[str]

    def score(self, prompt: str, responses: Sequence[str]) -> Sequence[float]:
        """One score each, NaN for a response that cannot be scored; called once for all of a vote's responses."""
        ...


SCORERS: Registry[Scorer] = Registry("scorer", "drafthouse.scorers")


def parse_model(value: Any, path: str) -> dict[str, Any]:
    """A model as a scorer, every field filled in. Raises SamplerError."""
    if not isinstance(value, Mapping) or not isinstance(value.get("model"), str) or not value["model"]:
        raise SamplerError(f"'{path}' must be an object with the name of a 'model'", path)
    for key in value.keys() - {"model", CONDITION.name, UNIT.name}:
        raise SamplerError(f"'{path}.{key}' is not a field of a scorer", f"{path}.{key}")
    given = {name: one for name, one in value.items() if one is not None}
    options = {
        param.name: param.check(given.get(param.name, param.neutral), f"{path}.{param.name}")
        for param in (CONDITION, UNIT)
    }
    return {"model": value["model"], **options}


def name_of(scorer: str | Mapping[str, Any]) -> str:
    """What its scores are called in a sample."""
    return scorer if isinstance(scorer, str) else str(scorer["model"])


def is_log_probability(scorer: str | Mapping[str, Any]) -> bool:
    """Whether no score is positive."""
    return scorer == LIKELIHOOD or not isinstance(scorer, str)


def responses(samples: Sequence[Sample]) -> list[str]:
    """What to score: each text of the samples that do not abstain once, in order of appearance; of a single sample
    nothing."""
    able = voters(samples)
    return list(dict.fromkeys(sample.text for sample in able)) if len(able) > 1 else []


def ask(scorer: Scorer, prompt: str, texts: Sequence[str]) -> list[float]:
    """One score per text, in one call if there are any. Raises ValueError for a scorer that gives another number."""
    scores = list(scorer.score(prompt, texts)) if texts else []
    if len(scores) != len(texts):
        raise ValueError(f"scorer '{scorer.name}' gave {len(scores)} scores for {len(texts)} responses")
    return list(map(float, scores))


def with_scores(scorer: Scorer, prompt: str, samples: Sequence[Sample]) -> list[Sample]:
    """The samples with what a scorer says about their texts. Raises ValueError as `ask` does."""
    texts = responses(samples)
    scores = dict(zip(texts, ask(scorer, prompt, texts), strict=True))
    return with_given(samples, scorer.name, lambda sample: scores[sample.text])


def with_likelihoods(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with their mean log-probability as a score, NaN where it is not known."""
    return with_given(
        samples, LIKELIHOOD, lambda sample: math.nan if sample.mean_logprob is None else sample.mean_logprob
    )


def with_given(samples: Sequence[Sample], name: str, score: Callable[[Sample], float]) -> list[Sample]:
    """The samples with this score; abstaining samples, and a single one, as they are."""
    if not responses(samples):
        return list(samples)
    return [
        sample if sample.abstains else replace(sample, scores={**sample.scores, name: score(sample)})
        for sample in samples
    ]
