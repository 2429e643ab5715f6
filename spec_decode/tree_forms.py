"""Forms of draft trees: the parents of the nodes, before anybody knows their tokens (spec_decode.md 6.3).

A form lists parents in generation order, -1 for the root; siblings come best first. The form of fewer nodes is its
beginning. Knows nothing about tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache

Form = tuple[int, ...]
_KNOWN = 2**12  # forms of which is remembered what has been computed; steps ask about few, again and again


@lru_cache(_KNOWN)
def chain(depth: int) -> Form:
    return tuple(range(-1, depth - 1))


def sequences(count: int, depth: int) -> Form:
    """`count` chains below the root, one depth of all of them after the other."""
    return tuple(max(node - count, -1) for node in range(count * depth))


def static(branching: Sequence[int], max_nodes: int) -> Form:
    """Level by level; `branching[d]` children of every node of depth d, the root being of depth 0."""
    form: list[int] = []
    level = [-1]
    for children in branching:
        parents = [parent for parent in level for _ in range(children)][: max_nodes - len(form)]
        level = list(range(len(form), len(form) + len(parents)))
        form += parents
    return tuple(form)


def halving(drafts: int, depth: int) -> tuple[int, ...]:
    """The branching that begins with `drafts` children and halves them with every level: 4, 2, 1, 1."""
    return tuple(max(1, drafts >> level) for level in range(depth))


@lru_cache(_KNOWN)
def depths(form: Form) -> tuple[int, ...]:
    """Of every node, 1 for children of the root."""
    result: list[int] = []
    for parent in form:
        result.append(1 if parent < 0 else result[parent] + 1)
    return tuple(result)


@lru_cache(_KNOWN)
def ranks(form: Form) -> tuple[int, ...]:
    """Of every node among its siblings, 0 for the first."""
    children: Counter[int] = Counter()
    result = []
    for parent in form:
        result.append(children[parent])
        children[parent] += 1
    return tuple(result)


@lru_cache(_KNOWN)
def children(form: Form) -> tuple[tuple[int, ...], ...]:
    """[N + 1] of the root, then of every node."""
    below: list[list[int]] = [[] for _ in range(len(form) + 1)]
    for node, parent in enumerate(form):
        below[parent + 1].append(node)
    return tuple(map(tuple, below))


def part(form: Sequence[int], nodes: Collection[int]) -> Form:
    """The form of these nodes alone, which hold the parents of all of them."""
    kept = sorted(nodes)
    renumbered = {-1: -1, **{node: number for number, node in enumerate(kept)}}
    return tuple(renumbered[form[node]] for node in kept)
