"""A draft tree while a model drafts it: wave by wave, which places get children next, and what has been chosen so far.

Which places get children, and how many, depends on tokens that have been drawn before, never on those to come; where
tokens are drawn no node is taken back (spec_decode.md 2.3, 6.3).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from spec_decode.contract import DraftPlan, DraftTree, Law
from spec_decode.tree_forms import Form, children

ROOT = -1


class Place(NamedTuple):
    """Where a row of the model is wanted."""

    node: int  # or ROOT
    count: int  # children to be chosen
    lane: int  # of the first child's random number; each is used once


class GrowingTree:
    """One request's tree."""

    def __init__(self, plan: DraftPlan, certain: bool, ending_ids: Collection[int], deepest: int) -> None:
        """certain: no token will be drawn; ending_ids: leaves; deepest: nodes below this depth stay leaves."""
        self.form, self.gains, self.deepest = plan.form, plan.gains, deepest
        self._ending_ids = ending_ids
        self._growth = _growth(plan, certain)
        self._lanes = 0
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.scores: list[float] = []  # ln of how probable the draft model thinks each path to be; 0 where not asked
        self._laws: list[Law] = []
        self._q_rows: list[int] = []
        self._q_minus: list[float] = []

    @property
    def scored(self) -> bool:
        """How it grows depends on scores."""
        return not isinstance(self._growth, Fixed)

    @property
    def most_places(self) -> int:
        """That will be asked for behind the root."""
        return self._growth.most_places

    def wave(self) -> list[Place]:
        """The places whose children are chosen next; none: the tree is complete."""
        if not self.tokens and self._lanes:  # the root has got no child
            return []
        places = []
        for node, count in self._growth.wave(self) if self.deepest >= 0 else ():
            places.append(Place(node, count, self._lanes))
            self._lanes += count
        return places

    def may_grow(self, node: int) -> bool:
        return self.tokens[node] not in self._ending_ids and self.depths[node] <= self.deepest

    def depth(self, node: int) -> int:
        return 0 if node == ROOT else self.depths[node]

    def reached(self, node: int) -> float | None:
        """How probable it is that everything down to this node will be accepted. None: nothing depends on it."""
        if self.gains is None:
            return None
        return 1.0 if node == ROOT else self.gains[self._growth.in_plan(node)]

    def add(
        self,
        place: Place,
        tokens: Sequence[int],
        drawn: int,
        q_row: int,
        q_minus: Sequence[float] | None = None,
        scores: Sequence[float] | None = None,
    ) -> None:
        """Children in verification order; negative tokens are left out. The first `drawn` ones were drawn from `q_row`;
        q_minus: of these, None for zeros; scores: ln of their probabilities."""
        parent, count, _ = place
        above = self.scores[parent] if parent != ROOT else 0.0
        depth = self.depth(parent) + 1
        for rank, token in enumerate(tokens[:count]):
            if token < 0:
                continue
            dense = rank < drawn
            self.tokens.append(token)
            self.parents.append(parent)
            self.depths.append(depth)
            self.scores.append(above if scores is None else above + scores[rank])
            self._laws.append(Law.DENSE if dense else Law.ONE_HOT)
            self._q_rows.append(q_row if dense else -1)
            self._q_minus.append(q_minus[rank] if dense and q_minus is not None else 0.0)

    def finish(self, q: Tensor | None) -> DraftTree:
        """q: [rows, V] what `q_row` has counted."""
        tree = DraftTree(
            np.array(self.tokens, np.int64),
            np.array(self.parents, np.int32),
            np.array(self._laws, np.uint8),
            np.array(self._q_rows, np.int32),
            np.array(self._q_minus, np.float32),
            q if any(row >= 0 for row in self._q_rows) else None,
        )
        kept = self._growth.kept(self)
        return tree if len(kept) == len(self.tokens) else tree.part(kept)


class Growth(Protocol):
    """Where a tree grows."""

    most_places: int

    def wave(self, tree: GrowingTree) -> list[tuple[int, int]]:
        """(place, children) of the next ones; first of all the root."""
        ...

    def kept(self, tree: GrowingTree) -> Sequence[int]:
        """The nodes that are proposed, in rising order."""
        ...

    def in_plan(self, node: int) -> int:
        """Which node of the plan this one is."""
        ...


class Fixed:
    """A form that was decided before; where siblings are missing, its last ones are."""

    def __init__(self, form: Form) -> None:
        self._below = children(form)
        self.most_places = sum(map(bool, self._below[1:]))
        self._in_form: list[int] = []  # of every node of the tree
        self._open: dict[int, Iterator[int]] = {}  # place -> nodes of the form that its children stand for
        self._begun = False

    def wave(self, tree: GrowingTree) -> list[tuple[int, int]]:
        places = []
        if not self._begun:
            self._begun = True
            places.append((ROOT, self._open_at(ROOT, ROOT)))
        for node in range(len(self._in_form), len(tree.tokens)):
            self._in_form.append(next(self._open[tree.parents[node]]))
            if tree.may_grow(node):
                places.append((node, self._open_at(node, self._in_form[node])))
        return [place for place in places if place[1]]

    def kept(self, tree: GrowingTree) -> Sequence[int]:
        return range(len(tree.tokens))

    def in_plan(self, node: int) -> int:
        return self._in_form[node]

    def _open_at(self, place: int, in_form: int) -> int:
        below = self._below[in_form + 1]
        self._open[place] = iter(below)
        return len(below)


class BestFirst:
    """The most probable nodes so far get children, until there are enough. For tokens that are drawn."""

    def __init__(self, plan: DraftPlan) -> None:
        self._plan = plan
        self._left = plan.max_nodes
        self._open = [(0.0, ROOT)]  # heap of (-score, place)
        self._seen = 0  # nodes
        self._grown: Counter[int] = Counter()  # places that got children, by depth
        self.most_places = -(-plan.max_nodes // plan.top_k)
        self._waves = plan.max_depth  # that are left: passes cost as much as levels
        self._at_once = max(1, -(-(self.most_places - 1) // max(plan.max_depth - 1, 1)))

    def wave(self, tree: GrowingTree) -> list[tuple[int, int]]:
        if not self._waves:
            return []
        self._waves -= 1
        for node in range(self._seen, len(tree.tokens)):
            if tree.may_grow(node):
                heapq.heappush(self._open, (-tree.scores[node], node))
        self._seen = len(tree.tokens)
        places: list[tuple[int, int]] = []
        while self._open and self._left and len(places) < self._at_once:
            _, node = heapq.heappop(self._open)
            depth = tree.depth(node)
            if depth < self._plan.max_depth and self._grown[depth] < self._plan.top_k:
                self._grown[depth] += 1
                count = min(self._plan.top_k, self._left)
                self._left -= count
                places.append((node, count))
        return places

    def kept(self, tree: GrowingTree) -> Sequence[int]:
        return range(len(tree.tokens))

    def in_plan(self, node: int) -> int:
        return node


class Ranked:
    """Level by level the most probable nodes get children; of all nodes the most probable ones are kept, which come
    with their parents (EAGLE-2, Li et al., arXiv 2406.16858). For tokens that are certain."""

    def __init__(self, plan: DraftPlan) -> None:
        self._plan = plan
        self._seen = 0  # nodes
        self._levels = 0
        self.most_places = plan.top_k * max(plan.max_depth - 1, 0)

    def wave(self, tree: GrowingTree) -> list[tuple[int, int]]:
        if self._levels == self._plan.max_depth:
            return []
        self._levels += 1
        if self._levels == 1:
            return [(ROOT, self._plan.top_k)]
        fresh = [node for node in range(self._seen, len(tree.tokens)) if tree.may_grow(node)]
        self._seen = len(tree.tokens)
        fresh.sort(key=lambda node: -tree.scores[node])
        return [(node, self._plan.top_k) for node in sorted(fresh[: self._plan.top_k])]

    def kept(self, tree: GrowingTree) -> Sequence[int]:
        order = sorted(range(len(tree.tokens)), key=lambda node: -tree.scores[node])  # a child never before its parent
        return sorted(order[: self._plan.max_nodes])

    def in_plan(self, node: int) -> int:
        return node


def _growth(plan: DraftPlan, certain: bool) -> Growth:
    if plan.form is not None:
        return Fixed(plan.form)
    return Ranked(plan) if certain else BestFirst(plan)
