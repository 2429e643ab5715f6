"""Grows a draft out of counts: what has followed a stretch of text, how often, and what followed that.

A text that counts says behind which endings of the current text it has gone on before (matches), and what comes behind
a place in it (continuations). The rest is here: SuffixDecoding (Oliaro et al., arXiv 2411.04975) over either. A draft
is a function of committed tokens alone, so any choice among its nodes is legitimate.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, NamedTuple, TypeVar

from spec_decode.contract import DraftPlan
from spec_decode.tree_forms import Form, ranks

P = TypeVar("P")  # a place in a text that counts


class Match(NamedTuple, Generic[P]):
    """An ending of the current text that has been followed by something."""

    length: int  # tokens
    place: P  # behind it


class Continuation(NamedTuple, Generic[P]):
    """A token that has followed a place."""

    token: int
    times: int
    place: P  # behind the token


Continuations = Callable[[P], Sequence[Continuation[P]]]


class Child(NamedTuple, Generic[P]):
    """A continuation as a node: its share of all texts that reached the match."""

    share: float
    token: int
    place: P


@dataclass
class Grown:
    """A draft, parents before their children, -1 the root."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    score: float = 0.0  # sum of the shares of its nodes
    matched: int = 0  # tokens of the match it continues

    def add(self, token: int, parent: int, share: float) -> int:
        """The new node."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.score += share
        return len(self.tokens) - 1


@dataclass(frozen=True)
class Growth:
    """How a request wants its drafts grown."""

    factor: float  # a match of m tokens allows floor(m * factor + offset) nodes
    offset: float
    min_prob: float  # no node has a smaller share
    ending_ids: frozenset[int] = frozenset()  # nothing grows behind them

    def best(self, matches: Iterable[Match[P]], continuations: Continuations[P], plan: DraftPlan) -> Grown:
        """The draft with the largest score among those of all matches; of equal ones, the longest match's.

        matches: longest first.
        """
        best = Grown()
        for match in matches:
            nodes = min(plan.max_nodes, math.floor(match.length * self.factor + self.offset))
            if nodes <= best.score:  # a share is at most 1, and shorter matches allow no more nodes
                break
            grown = Grown(matched=match.length)
            if plan.form is None:
                self._grow_freely(grown, match.place, continuations, plan, nodes)
            else:
                self._grow_along(grown, match.place, continuations, plan.form, nodes)
            if grown.score > best.score:
                best = grown
        return best

    def _grow_along(self, grown: Grown, start: P, continuations: Continuations[P], form: Form, most: int) -> None:
        """The first `most` nodes of a tree of this form that there are tokens for."""
        wanted = Counter(form)  # children of each node
        nodes = {-1: -1}  # of the form -> grown
        children = {-1: self._children(start, 1.0, continuations, wanted[-1])}
        for node, (parent, rank) in enumerate(zip(form, ranks(form), strict=True)):
            if len(grown.tokens) < most and rank < len(children.get(parent, ())):
                child = children[parent][rank]
                nodes[node] = grown.add(child.token, nodes[parent], child.share)
                if wanted[node] and child.token not in self.ending_ids:
                    children[node] = self._children(child.place, child.share, continuations, wanted[node])

    def _grow_freely(self, grown: Grown, start: P, continuations: Continuations[P], plan: DraftPlan, most: int) -> None:
        """The best nodes of the tree in which the best `top_k` nodes of each depth have their best `top_k` children
        (EAGLE-2, arXiv 2406.16858). Shares fall along a path, so the heap gives the nodes of each depth best first."""
        opened = [0] * plan.max_depth  # nodes of each depth that have children
        serial = count()
        heap: list[tuple[float, int, int, int, Child[P]]] = []  # -share, serial, parent, depth, node

        def open_children(parent: int, depth: int, share: float, place: P) -> None:
            if depth < plan.max_depth and opened[depth] < plan.top_k:
                opened[depth] += 1
                for child in self._children(place, share, continuations, plan.top_k):
                    heapq.heappush(heap, (-child.share, next(serial), parent, depth + 1, child))

        open_children(-1, 0, 1.0, start)
        while heap and len(grown.tokens) < most:
            _, _, parent, depth, child = heapq.heappop(heap)
            node = grown.add(child.token, parent, child.share)
            if child.token not in self.ending_ids:
                open_children(node, depth, child.share, child.place)

    def _children(self, place: P, share: float, continuations: Continuations[P], most: int) -> list[Child[P]]:
        """At most `most`, best first; of equally frequent ones the lowest token."""
        found = continuations(place)
        total = sum(one.times for one in found)
        best = heapq.nsmallest(most, found, key=lambda one: (-one.times, one.token))
        children = [Child(share * one.times / total, one.token, one.place) for one in best]
        return [child for child in children if child.share >= self.min_prob]
