"""Samples whose answers are the same, put together (voting.md section 17)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from voting.answers.equivalence import Equivalence, Key
from voting.answers.math_pool import Comparison
from voting.answers.published import closure
from voting.contract import Cluster, Sample

TRUNCATED = "equiv_truncated"  # some pairs were not compared in time and count as different
NOT_TRANSITIVE = "relation_not_transitive"  # math-verify found answers of two clusters equal

Compare = Callable[[Sequence[str], str, float], Comparison]  # `MathPool.compare`


@dataclass(frozen=True)
class Partition:
    """The clusters of a vote, by first member, and what is to be known about them."""

    clusters: tuple[Cluster, ...]
    flags: tuple[str, ...] = ()


def partition(samples: Sequence[Sample], equivalence: Equivalence, compare: Compare | None = None) -> Partition:
    """The clusters of all samples that do not abstain. On rungs 0 to 2 they do not depend on the samples' order; rung
    3 merges keys by complete link, in order of first appearance.

    compare: what to ask on rung 3; needed where `equivalence.math_verify` is set, and the only thing here that waits.
    """
    voters = sorted((sample for sample in samples if not sample.abstains), key=lambda sample: sample.index)
    keys = equivalence.keys((sample.answer or "", sample.option) for sample in voters)
    names = list(dict.fromkeys(key.text for key in keys))
    groups, flags = [[place] for place in range(len(names))], set[str]()
    if equivalence.percent == "published":
        groups = _published(names, keys)
        flags |= {NOT_TRANSITIVE} if len(groups) < len(names) else set()
    linked = groups
    if equivalence.math_verify:
        if compare is None:
            raise ValueError("rung 3 needs something that compares")
        found = compare(names, equivalence.symmetric, equivalence.budget_s)
        linked = _complete_link(groups, found)
        flags |= _flags(linked, found)
    voices: dict[str, list[tuple[Sample, Key]]] = {name: [] for name in names}
    for sample, key in zip(voters, keys, strict=True):
        voices[key.text].append((sample, key))
    clusters = []
    for places in linked:
        inside = sorted((voice for place in places for voice in voices[names[place]]), key=lambda voice: voice[0].index)
        members = tuple(sample.index for sample, _ in inside)
        rung = _rung([key for _, key in inside]) if places in groups else 3
        clusters.append(Cluster(inside[0][0].answer or "", inside[0][1].text, rung, members))
    return Partition(tuple(sorted(clusters, key=lambda cluster: cluster.members)), tuple(sorted(flags)))


def _published(names: Sequence[str], keys: Sequence[Key]) -> list[list[int]]:
    """Positions of the names that are one, by first position."""
    numbers = {key.text: key.number for key in keys if key.number is not None}
    label = dict(zip(numbers, closure(list(numbers.values())), strict=True))
    groups: dict[int | str, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(label.get(name, name), []).append(place)
    return list(groups.values())


def _complete_link(groups: Sequence[Sequence[int]], found: Comparison) -> list[list[int]]:
    """Every group joins the first cluster all of whose members equal all of its own, or begins one. Merging what
    equals any member instead would put together what nobody found equal."""
    linked: list[list[int]] = []
    for group in groups:
        for cluster in linked:
            if all((min(one, other), max(one, other)) in found.equal for one in cluster for other in group):
                cluster.extend(group)
                break
        else:
            linked.append(list(group))
    return linked


def _flags(linked: Sequence[Sequence[int]], found: Comparison) -> set[str]:
    cluster = {place: number for number, places in enumerate(linked) for place in places}
    torn = any(cluster[one] != cluster[other] for one, other in found.equal)
    return {name for name, holds in ((TRUNCATED, not found.complete), (NOT_TRANSITIVE, torn)) if holds}


def _rung(keys: Sequence[Key]) -> int:
    """The highest that merged two of these, of rungs 0 to 2."""
    return max(key.rung for key in keys) if len({key.spelling for key in keys}) > 1 else 0
