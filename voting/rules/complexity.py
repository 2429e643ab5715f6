"""Complexity-based consistency: the majority among samples with most steps (Fu et al., arXiv 2210.00720)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from samplers.contract import Param
from voting.contract import VOTING_RULES, Cluster, Sample, Tally
from voting.rule import BaseRule, voters
from voting.rules.sc import count

_ENDS = {"line": re.compile(r"\n"), "sentence": re.compile(r"(?<=[.!?])\s+|\n"), "semicolon": re.compile(r";")}


@VOTING_RULES.register
class Complexity(BaseRule):
    """Keeps the share `keep` of the samples that have most steps, at least one; ties at the cut go to the lower index.
    A step is a `unit` of text that is not empty. Longer is often wrong with models that were trained to reason.
    """

    name = "complexity"
    params = (
        Param("keep", float, 0.8, low=0, high=1, low_open=True),
        Param("unit", str, "line", choices=("line", "sentence", "semicolon")),
    )

    def tally(self, samples: Sequence[Sample], clusters: Sequence[Cluster], values: Mapping[str, Any]) -> Tally:
        able = voters(samples)
        complexity = {sample.index: steps(sample.text, values["unit"]) for sample in able}
        ranked = sorted(able, key=lambda sample: (-complexity[sample.index], sample.index))
        kept = max(1, math.ceil(round(values["keep"] * len(able), 9)))  # 0.7 of 10 is not 8
        last, cut = complexity[ranked[kept - 1].index], ranked[kept:]
        tally = count(ranked[:kept], clusters)
        return Tally(
            tally.weights,
            sample_weights=tally.sample_weights,
            pruned={sample.index: "few_steps" for sample in cut},
            notes={"fewest_steps": last, "tied_at_cut": any(complexity[sample.index] == last for sample in cut)},
        )


def steps(text: str, unit: str) -> int:
    """How many lines, sentences or parts between semicolons are not empty."""
    return sum(bool(part.strip()) for part in _ENDS[unit].split(text))
