"""RPC: perplexity consistency after improbable paths have been pruned (arXiv 2510.15444)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from samplers.contract import Param
from voting.contract import VOTING_RULES, Cluster, Sample, Tally
from voting.rule import BaseRule, by_cluster, distinct, voters
from voting.rules.pc import DUPLICATES, SCORE, needs_of, path_weights, paths_of
from voting.weibull import Fit, Mixture, below, fit, is_separated, mean

REASON = "low_probability"


@VOTING_RULES.register
class ReasoningPruning(BaseRule):
    """A path is pruned if it rather belongs to the lower of two Weibull components of all q, and its q is below their
    mean. Pruned samples stay in their clusters and weigh nothing.

    Where the fit is not to be trusted nothing is pruned, unless `convergence` is published: then any parameters will
    do. `require_separation` prunes only if two components explain the paths better than one; `monotone` also prunes
    whatever has a lower q than a path that is pruned. Joint probabilities are never pruned: they have no two halves.
    `duplicates` is as of PC, and holds for the fit.
    """

    name = "rpc"
    params = (
        SCORE,
        DUPLICATES,
        Param("prune", bool, True),
        Param("fit_set", str, "distinct", choices=("distinct", "all")),
        Param("convergence", str, "strict", choices=("strict", "published")),
        Param("min_paths", int, 8, low=1, high=512),
        Param("require_separation", bool, False),
        Param("monotone", bool, False),
    )

    def needs(self, values: Mapping[str, Any]) -> frozenset[str]:
        return needs_of(values["score"])

    def tally(self, samples: Sequence[Sample], clusters: Sequence[Cluster], values: Mapping[str, Any]) -> Tally:
        worth = path_weights(samples, values)
        if not values["prune"] or values["score"] == "joint":
            return Tally(by_cluster(clusters, worth), sample_weights=worth)
        found = prune(samples, values)
        worth |= dict.fromkeys(worth.keys() & found.pruned, 0.0)
        return Tally(
            by_cluster(clusters, worth),
            sample_weights=worth,
            pruned=dict.fromkeys(found.pruned, REASON),
            pruning=found.report,
        )


class Pruning(NamedTuple):
    """Which samples are pruned, and the fit that says so."""

    pruned: tuple[int, ...]  # sample indices, equal completions included, ascending
    report: dict[str, Any]  # finite JSON


def prune(samples: Sequence[Sample], values: Mapping[str, Any]) -> Pruning:
    """values: those of RPC. Never prunes all that could vote."""
    published = values["convergence"] == "published"
    able = voters(samples)
    fitted = [sample.q for sample in (_measured(samples) if values["fit_set"] == "all" else paths_of(samples, values))]
    found = fit(fitted, 1 if published else values["min_paths"])
    floor = mean(fitted)
    flags = list(found.flags)
    low: set[int] = set()
    if found.mixture is not None and (published or found.status == "ok"):
        if values["require_separation"] and not (found.status == "ok" and is_separated(found, fitted)):
            flags.append("not_separated")
        else:
            low = _low(able, found.mixture, floor)
    highest = max((sample.q for sample in able if sample.index in low), default=-math.inf)
    overtaken = {sample.index for sample in able if sample.q <= highest} - low
    if overtaken:
        flags.append("non_monotone")
        low |= overtaken if values["monotone"] else set()
    if len(low) == len(able):  # only where the floor is a mean over more than those that can vote
        flags.append("all_low")
        low = set()
    return Pruning(tuple(sorted(low)), _report(found, flags, floor, len(low)))


def _low(able: Sequence[Sample], mixture: Mixture, floor: float) -> set[int]:
    """Equal completions share the fate of their first."""
    paths = distinct(able)
    low = below(mixture, [path.q for path in paths], floor)
    out = {path.identity for path, is_low in zip(paths, low, strict=True) if is_low}
    return {sample.index for sample in able if sample.identity in out}


def _measured(samples: Sequence[Sample]) -> list[Sample]:
    """Those with log-probabilities, abstaining or not."""
    return [sample for sample in samples if sample.mean_logprob is not None]


def _report(found: Fit, flags: Sequence[str], floor: float, n_pruned: int) -> dict[str, Any]:
    params = None
    if found.mixture is not None:
        high, low = found.mixture
        params = {"w": high.share, "k_hi": high.shape, "s_hi": high.scale, "k_lo": low.shape, "s_lo": low.scale}
    return {
        "status": found.status,
        "flags": list(flags),
        "n_pruned": n_pruned,
        "params": params,
        "mean_q": floor,
        "nll": found.nll if math.isfinite(found.nll) else None,
    }
