"""Samples whose answers are the same, put together (voting.md section 17)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from voting.answers.equivalence import Equivalence, Key
from voting.answers.math_pool import Comparison
from voting.answers.published import closure
from voting.contract import Cluster, Sample

TRUNCATED = "equiv_truncated"  # some pairs were not compared in time and count as different
NOT_TRANSITIVE = "relation_not_transitive"  # answers of two clusters are equal too, or may be for other samples

Compare = Callable[[Sequence[str], str, float], Comparison]  # `MathPool.compare`
_Voice = tuple[Sample, Key]


@dataclass(frozen=True)
class Partition:
    """The clusters of a vote, by first member, and what is to be known about them."""

    clusters: tuple[Cluster, ...]
    flags: tuple[str, ...] = ()


def partition(
    samples: Sequence[Sample],
    equivalence: Equivalence,
    compare: Compare | None = None,
    normal: dict[str, str] | None = None,
) -> Partition:
    """The clusters of all samples that do not abstain. On rungs 0 to 2 they do not depend on the samples' order; rung
    3 merges keys by complete link, in order of first appearance.

    compare: what to ask on rung 3; needed where `equivalence.math_verify` is set, and the only thing here that waits.
    normal: answers as `normalise` leaves them, as far as known; all of them are afterwards. For those who ask again.
    """
    voters = sorted((sample for sample in samples if not sample.abstains), key=lambda sample: sample.index)
    keys = equivalence.keys(((sample.answer or "", sample.option) for sample in voters), normal)
    names = list(dict.fromkeys(key.text for key in keys))
    groups = [[place] for place in range(len(names))]
    if equivalence.percent == "published":
        groups = _published(names, keys)
    flags = {NOT_TRANSITIVE} if len(groups) < len(names) else set()
    linked = groups
    if equivalence.math_verify:
        if compare is None:
            raise ValueError("rung 3 needs something that compares")
        found = _compared(names, keys, equivalence, compare)
        linked = _complete_link(groups, found.equal)
        flags |= {TRUNCATED} if not found.complete else set()
        flags |= {NOT_TRANSITIVE} if _is_torn(linked, found.equal) else set()
    voices: dict[str, list[_Voice]] = {name: [] for name in names}
    for sample, key in zip(voters, keys, strict=True):
        voices[key.text].append((sample, key))
    apart = set(map(tuple, groups))
    clusters = [
        _cluster([voice for place in places for voice in voices[names[place]]], linked=tuple(places) not in apart)
        for places in linked
    ]
    return Partition(tuple(sorted(clusters, key=lambda cluster: cluster.members)), tuple(sorted(flags)))


def _cluster(voices: Sequence[_Voice], linked: bool) -> Cluster:
    """linked: by rung 3."""
    voices = sorted(voices, key=lambda voice: voice[0].index)
    first, key = voices[0]
    same = len({key.spelling for _, key in voices}) == 1
    rung = 3 if linked else 0 if same else max(key.rung for _, key in voices)
    return Cluster(first.answer or "", key.text, rung, tuple(sample.index for sample, _ in voices))


def _compared(names: Sequence[str], keys: Sequence[Key], equivalence: Equivalence, compare: Compare) -> Comparison:
    """Of all names but the letters of options, which are no formulas."""
    options = {key.text for key in keys if key.rung == 2}
    places = [place for place, name in enumerate(names) if name not in options]
    found = compare([names[place] for place in places], equivalence.symmetric, equivalence.budget_s)
    return Comparison(frozenset((places[one], places[other]) for one, other in found.equal), found.complete)


def _published(names: Sequence[str], keys: Sequence[Key]) -> list[list[int]]:
    """Positions of the names that are one, by first position."""
    numbers = {key.text: key.number for key in keys if key.number is not None}
    label = dict(zip(numbers, closure(list(numbers.values())), strict=True))
    groups: dict[int | str, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(label.get(name, name), []).append(place)
    return list(groups.values())


def _complete_link(groups: Sequence[Sequence[int]], equal: Collection[tuple[int, int]]) -> list[list[int]]:
    """Every group joins the first cluster all of whose members equal all of its own, or begins one. Merging what
    equals any member instead would put together what nobody found equal."""
    linked: list[list[int]] = []
    for group in groups:
        for cluster in linked:
            if all((min(one, other), max(one, other)) in equal for one in cluster for other in group):
                cluster.extend(group)
                break
        else:
            linked.append(list(group))
    return linked


def _is_torn(linked: Sequence[Sequence[int]], equal: Collection[tuple[int, int]]) -> bool:
    """Whether some that are equal are in different clusters."""
    cluster = {place: number for number, places in enumerate(linked) for place in places}
    return any(cluster[one] != cluster[other] for one, other in equal)
