"""DeepConf: traces weigh what their least confident stretches say (arXiv 2508.15260)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from samplers.contract import Param, SamplerError
from voting.contract import VOTING_RULES, Cluster, Drawing, Sample, Tally
from voting.rule import BaseRule, by_cluster, voters
from voting.trace_confidence import SCORES, percentile, trace_score

ABORTED = "low_confidence"  # why an aborted trace abstains, and why one of the warm-up does not count
TAU = Param("consensus_tau", float, 0.95, low=0, high=1, low_open=True)


@VOTING_RULES.register
class DeepConf(BaseRule):
    """`mode` offline: a trace is worth its `score`; only the `eta` percent with the highest scores count.

    `mode` online: the first `warmup` traces are drawn in full. The threshold is such a percentile of their lowest
    windows that `confidence_percentile` percent are at or above it; later traces are aborted when a full window falls
    below it. Those that were not, and traces of the warm-up at or above it, are worth their lowest window. Drawing
    stops when the leading answer has the share `consensus_tau` of the weight; null: never. Weights are multiplied by
    sample weights.
    """

    name = "deepconf"
    params = (
        Param("mode", str, "offline", choices=("offline", "online")),
        Param("topk", int, 20, low=2, high=100),
        Param("window", int, 2048, low=1, high=1 << 20),  # tokens
        Param("score", str, "bottom10", choices=SCORES),
        Param("eta", float, 100.0, low=0, high=100),  # percent
        Param("warmup", int, 16, low=1, high=1 << 20),  # traces
        Param("confidence_percentile", float, 90.0, low=0, high=100),
    )
    structured = (TAU.name,)
    structured_defaults = MappingProxyType({TAU.name: TAU.neutral})

    def parse(self, field: str, value: Any, path: str) -> Any:
        if field != TAU.name:
            return super().parse(field, value, path)
        return None if value is None else TAU.check(value, path)

    def check(self, values: Mapping[str, Any], samples: int) -> None:
        if values["mode"] == "online" and values["warmup"] > samples:
            raise SamplerError(f"'warmup' must be at most the number of samples ({samples})", "warmup")

    def needs(self, values: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({"confidences"})

    def drawing(self, values: Mapping[str, Any]) -> Drawing:
        return Drawing.SCREENED if values["mode"] == "online" else Drawing.INDEPENDENT

    def tally(self, samples: Sequence[Sample], clusters: Sequence[Cluster], values: Mapping[str, Any]) -> Tally:
        online = values["mode"] == "online"
        able = voters(samples)
        kind = "lowest" if online else values["score"]
        scores = {s.index: trace_score(s.confidences or (), values["window"], kind) for s in able}
        if online:
            least = self.threshold(samples, values)
            judged = {sample.index for sample in samples[: values["warmup"]]}
        else:
            least = percentile(list(scores.values()), 100 - values["eta"])
            judged = set(scores)
        pruned = {} if least is None else {i: ABORTED for i in scores if i in judged and scores[i] < least}
        worth = {s.index: s.weight * scores[s.index] for s in able if s.index not in pruned}
        return Tally(
            by_cluster(clusters, worth),
            sample_weights=worth,
            pruned=pruned,
            notes={"threshold": least, "topk": values["topk"]},
        )

    def threshold(self, samples: Sequence[Sample], values: Mapping[str, Any]) -> float | None:
        warm = samples[: values["warmup"]]
        lowest = [trace_score(sample.confidences, values["window"], "lowest") for sample in warm if sample.confidences]
        if len(warm) < values["warmup"] or not lowest:
            return None
        return percentile(lowest, 100 - values["confidence_percentile"])

    def has_consensus(self, tally: Tally, values: Mapping[str, Any]) -> bool:
        total = sum(tally.weights)
        tau = values[TAU.name]
        return tau is not None and total > 0 and max(tally.weights) >= tau * total
