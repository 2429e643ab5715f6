"""Best of n: the sample that a scorer likes best, or the answer whose samples it likes best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from samplers.contract import Param, SamplerError
from voting.contract import VOTING_RULES, Cluster, Sample, Tally
from voting.rule import BaseRule, by_cluster, voters
from voting.scorers import LIKELIHOOD, is_log_probability, name_of, parse_model
from voting.selection import pick, scores_of, unscored


@VOTING_RULES.register
class BestOfN(BaseRule):
    """`scorer`: whose scores the samples carry, a name or a model as in `ppl`. `aggregate`: max picks the best sample;
    cluster_sum adds the scores of an answer's samples, which must not be negative; softmax adds exp(beta (r - best r)).
    Sums count sample weights. Samples without a finite score abstain.
    """

    name = "bon"
    params = (
        Param("aggregate", str, "max", choices=("max", "cluster_sum", "softmax")),
        Param("beta", float, 1.0, low=0, high=1e6),
    )
    structured = ("scorer",)

    def parse(self, field: str, value: Any, path: str) -> Any:
        if field != "scorer":
            return super().parse(field, value, path)
        if isinstance(value, Mapping):
            return parse_model(value, path)
        if not isinstance(value, str) or not value:
            raise SamplerError(f"'{path}' must be the name of a scorer or an object with that of a 'model'", path)
        return value

    def check(self, values: Mapping[str, Any], samples: int) -> None:
        if values["aggregate"] == "cluster_sum" and is_log_probability(values["scorer"]):
            raise SamplerError(
                f"'{name_of(values['scorer'])}' gives log-probabilities, which are negative and cannot be summed",
                "aggregate",
            )

    def needs(self, values: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({"scores", "logprobs"} if values["scorer"] == LIKELIHOOD else {"scores"})

    def abstentions(self, samples: Sequence[Sample], values: Mapping[str, Any]) -> Mapping[int, str]:
        return {**unscored(samples, name_of(values["scorer"])), **super().abstentions(samples, values)}

    def tally(self, samples: Sequence[Sample], clusters: Sequence[Cluster], values: Mapping[str, Any]) -> Tally:
        scorer = name_of(values["scorer"])
        scores = scores_of(samples, scorer)
        if values["aggregate"] == "max":
            return pick(clusters, scores)
        if values["aggregate"] == "cluster_sum":
            if min(scores.values()) < 0:
                raise SamplerError(f"'{scorer}' gives negative scores, which cannot be summed", "aggregate")
            worth = scores
        else:
            best = max(scores.values())
            worth = {index: math.exp(values["beta"] * (score - best)) for index, score in scores.items()}
        worth = {sample.index: sample.weight * worth[sample.index] for sample in voters(samples)}
        return Tally(by_cluster(clusters, worth), sample_weights=worth)


def expected_best(scores: Sequence[float], k: int) -> float:
    """Unbiased estimate of the best of k scores, from n >= k of them: sum over i >= k of C(i-1, k-1) / C(n, k) r_(i)
    with r ascending. Raises SamplerError for k outside 1..n."""
    n = len(scores)
    if not 1 <= k <= n:
        raise SamplerError(f"'k' must be in 1..{n}, got {k}", "k")
    subsets = math.comb(n, k)
    return math.fsum(math.comb(i - 1, k - 1) / subsets * r for i, r in enumerate(sorted(scores), 1))
