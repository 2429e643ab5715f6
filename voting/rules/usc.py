"""Universal self-consistency: a model picks the most consistent response (Chen et al., arXiv 2311.17311).

In two steps around a call that others make: `ask` gives the question, `answer` puts the judge's choice into the
samples, and the vote reads it there. So a recorded vote can be repeated without the judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from samplers.contract import Param
from voting import judge
from voting.contract import VOTING_RULES, Cluster, Question, Sample, Tally
from voting.rule import BaseRule, by_cluster, voters
from voting.rules.sc import count

SCORE = "usc"  # 1 for the sample that the judge has chosen


@VOTING_RULES.register
class UniversalSelfConsistency(BaseRule):
    """The judge's choice wins. Where its reply names none, `unclear` decides: sc counts answers, first takes the first
    response (for votes whose answers are whole texts).

    `shuffle` numbers the responses in an order drawn from the request's seed, since judges prefer some places.
    `drop_abstain` false shows the judge those without an answer too; if it picks one, the vote has none.
    """

    name = "usc"
    params = (
        Param("shuffle", bool, True),
        Param("drop_abstain", bool, True),
        Param("unclear", str, "sc", choices=("sc", "first")),
    )
    default_samples = 8

    def ask(self, problem: str, samples: Sequence[Sample], values: Mapping[str, Any], seed: int) -> Question | None:
        shown = voters(samples) if values["drop_abstain"] else list(samples)
        if len(shown) < 2:
            return None
        return judge.question(problem, shown, seed if values["shuffle"] else None)

    def answer(self, samples: Sequence[Sample], question: Question, reply: str) -> list[Sample]:
        """That which the reply names is marked as chosen."""
        choice = judge.chosen(reply, question.order)
        return [replace(sample, scores={**sample.scores, SCORE: float(sample.index == choice)}) for sample in samples]

    def tally(self, samples: Sequence[Sample], clusters: Sequence[Cluster], values: Mapping[str, Any]) -> Tally:
        able = voters(samples)
        chosen = [sample for sample in samples if sample.scores.get(SCORE, 0.0) > 0]
        fallback = None
        if not chosen and len(able) > 1:
            fallback = "usc_parse"
            if values["unclear"] == "sc":
                return replace(count(able, clusters), fallback=fallback)
        choice = (chosen or able)[0].index
        votes = {sample.index: float(sample.index == choice) for sample in able}
        weights = by_cluster(clusters, votes, max)
        return Tally(weights, choice, shares=False, sample_weights=votes, fallback=fallback)
