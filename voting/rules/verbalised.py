"""Verbalised confidence: the model's own stated confidence is a sample's weight (Xiong et al., arXiv 2306.13063)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from samplers.contract import Param
from voting.contract import VOTING_RULES, Cluster, Sample, Tally
from voting.rule import BaseRule, by_cluster, voters

INSTRUCTION = (
    "Solve the problem, then state your answer. After it, on a line of its own, write how sure you are that the answer "
    "is right, as a number from 0 (certainly wrong) to 100 (certainly right), like this:\nConfidence: 50"
)
# "Confidence: 85", "**Confidence:** 85%", "confidence = 85/100"; not "85/90" or "8.5.2"
_STATED = re.compile(
    r"\bconfidence\b[ \t*_]*[:=][ \t*_]*([+-]?\d+(?:\.\d+)?)(?:[ \t]*%|[ \t]*/[ \t]*100\b)?(?!\d|[.,/]\d|[ \t]*/)",
    re.IGNORECASE,
)


@VOTING_RULES.register
class Verbalised(BaseRule):
    """A sample is worth what its last stated confidence says, of 100; without one in that range it abstains. An answer
    weighs the sum, or with `aggregate` mean the mean, of its samples; both count sample weights.
    """

    name = "verbalised"
    params = (Param("aggregate", str, "sum", choices=("sum", "mean")),)
    instruction = INSTRUCTION

    def answer_text(self, text: str) -> str:
        """Without the stated numbers, which would be taken for answers."""
        return _STATED.sub("", text)

    def abstentions(self, samples: Sequence[Sample], values: Mapping[str, Any]) -> Mapping[int, str]:
        return {sample.index: "no_confidence" for sample in voters(samples) if stated(sample.text) is None}

    def tally(self, samples: Sequence[Sample], clusters: Sequence[Cluster], values: Mapping[str, Any]) -> Tally:
        able = voters(samples)
        worth = {sample.index: sample.weight * (stated(sample.text) or 0.0) for sample in able}
        weights = by_cluster(clusters, worth)
        if values["aggregate"] == "mean":
            sizes = by_cluster(clusters, {sample.index: sample.weight for sample in able})
            weights = tuple(weight / size if size else 0.0 for weight, size in zip(weights, sizes, strict=True))
        return Tally(weights, sample_weights=worth)


def stated(text: str) -> float | None:
    """The last stated confidence, as a share of 1. None: there is none, or it is outside of 0..100."""
    found = _STATED.findall(text)
    percent = float(found[-1]) if found else math.nan
    return percent / 100 if 0 <= percent <= 100 else None
