"""The most probable completion: by the generating model, or by another one (Gupta & Srikumar, arXiv 2505.21941)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from samplers.contract import Param
from voting.contract import VOTING_RULES, Cluster, Sample, Tally
from voting.rule import BaseRule, voters
from voting.scorers import name_of, parse_model
from voting.selection import pick, scores_of, unscored


@VOTING_RULES.register
class Perplexity(BaseRule):
    """Picks one sample, whatever the others answer. `normalise` says per what its log-probability counts: per token,
    per byte of its text, or as a whole (sum). The confidence is q. With a `scorer`, samples carry that model's measure,
    higher being better, in their scores under its name, and there is no confidence.
    """

    name = "ppl"
    params = (Param("normalise", str, "token", choices=("token", "sum", "byte")),)
    structured = ("scorer",)
    structured_defaults = MappingProxyType({"scorer": None})

    def parse(self, field: str, value: Any, path: str) -> Any:
        """scorer: {model, condition: none | prompt, unit: byte | token}, or null for the generating model."""
        if field != "scorer":
            return super().parse(field, value, path)
        return None if value is None else parse_model(value, path)

    def needs(self, values: Mapping[str, Any]) -> frozenset[str]:
        if values["scorer"] is not None:
            return frozenset({"scores"})
        return frozenset({"logprobs"} if values["normalise"] == "token" else {"logprobs", "lengths"})

    def abstentions(self, samples: Sequence[Sample], values: Mapping[str, Any]) -> Mapping[int, str]:
        if values["scorer"] is not None:
            return unscored(samples, name_of(values["scorer"]))
        empty = {s.index: "empty" for s in voters(samples) if values["normalise"] == "byte" and not s.text}
        return {**empty, **super().abstentions(samples, values)}

    def tally(self, samples: Sequence[Sample], clusters: Sequence[Cluster], values: Mapping[str, Any]) -> Tally:
        if values["scorer"] is not None:
            return pick(clusters, scores_of(samples, name_of(values["scorer"])))
        measure = _MEASURES[values["normalise"]]
        able = voters(samples)
        tally = pick(clusters, {sample.index: measure(sample) for sample in able})
        return replace(tally, confidence=next(sample.q for sample in able if sample.index == tally.choice))


def bits_per_byte(sum_logprob: float, n_bytes: int) -> float:
    """-sum of ln p in bits, per byte of the text in UTF-8. Raises ValueError for an empty text."""
    if n_bytes < 1:
        raise ValueError("an empty text has no bits per byte")
    return -sum_logprob / (math.log(2) * n_bytes)


_MEASURES = {
    "token": lambda sample: sample.mean_logprob,
    "sum": lambda sample: sample.sum_logprob,
    "byte": lambda sample: -bits_per_byte(sample.sum_logprob, len(sample.text.encode())),
}
