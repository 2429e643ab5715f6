"""What a draft model remembers of one request: committed tokens, their KV as far as it is computed, and the scratch
rows of its last draft."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import numpy as np

from engine.pages import Branch
from engine.runners.torch.packing import Chunk
from engine.runners.torch.paged_model import PagedModel
from samplers.rng import Stream
from spec_decode.contract import DraftAdmission
from spec_decode.drafters.growing_tree import ROOT, GrowingTree

_ANSWER = 256  # tokens that are expected to follow: a hint that keeps pages together


class DraftSlot:
    """Positions [0, computed) of the branch are committed tokens, what lies behind them is scratch."""

    def __init__(self, model: PagedModel, admission: DraftAdmission) -> None:
        self.admission = admission
        self.tokens = list(admission.tokens)
        self.family = object()  # of all choices of one prompt
        self.computed = 0  # leading tokens whose KV is cached
        self.sampled = False  # the samplers know of it
        self._model = model
        self._branch = model.pages.new_branch(expected=len(self.tokens) + _ANSWER)
        self._tree: GrowingTree | None = None  # what was drafted last, while its rows are worth something
        self._row_of: dict[int, int] = {}  # node -> its scratch row
        self._seen = np.zeros((0, 0), bool)  # [rows, rows] of the scratch rows, ancestor or self
        self._depths = np.zeros(0, np.int64)  # [rows], 0 right behind the committed tokens

    @property
    def branch(self) -> Branch:
        return self._branch

    @property
    def missing(self) -> int:
        """Committed tokens to compute before anything can be drafted; at least the last one, whose row is wanted."""
        return len(self.tokens) - min(self.computed, len(self.tokens) - 1)

    def places(self) -> list[tuple[int, int]]:
        """Runs of slots [start, stop) that hold the committed tokens and the scratch rows."""
        return self._model.pages.runs(self._branch, 0, self._branch.length)

    def fork(self, stream: Stream) -> DraftSlot:
        self.forget_draft()
        child = copy(self)
        child.admission, child.sampled = replace(self.admission, stream=stream), False
        child.tokens = self.tokens.copy()
        child._branch = self._model.pages.fork(self._branch)
        return child

    def adopt(self, other: DraftSlot) -> None:
        """Share what another choice of the same prompt has computed of it, in place of what is held."""
        shared = min(other.computed, len(self.admission.tokens) - 1)
        self.release()
        self._branch = self._model.pages.fork(other._branch)
        self._model.pages.truncate(self._branch, shared)
        self.computed = shared

    def extend(self, count: int) -> Chunk:
        """The next `count` tokens, which the caller computes. Raises OutOfPages, and changes nothing then."""
        self.forget_draft()
        self._model.pages.append(self._branch, count)
        return self.chunk(count)

    def release(self) -> None:
        """Give the KV back. It is computed anew when it is needed."""
        self._tree, self.computed = None, 0
        self._model.pages.release(self._branch)

    def forget_draft(self) -> None:
        self._tree = None
        self._model.pages.truncate(self._branch, self.computed)

    def commit(self, tokens: Sequence[int]) -> None:
        """Keep the rows of drafted nodes that have become part of the text, drop the others."""
        if self._tree is not None:
            rows = self._rows_of(tokens)
            self._model.compact(self._branch, self.computed, rows)
            self._tree = None
            self.computed += len(rows)
        self.tokens += tokens

    def reserve(self, tree: GrowingTree) -> None:
        """Make room for the missing tokens and a draft. Raises OutOfPages, and changes nothing of the KV then."""
        self.forget_draft()
        self.computed = len(self.tokens) - self.missing
        self._model.pages.truncate(self._branch, self.computed)
        most = tree.most_places
        self._model.pages.append(self._branch, self.missing + most)
        self._tree, self._row_of = tree, {}
        self._seen, self._depths = np.eye(most, dtype=bool), np.zeros(most, np.int64)

    def chunk(self, count: int) -> Chunk:
        """The next missing tokens, which the caller computes."""
        start, self.computed = self.computed, self.computed + count
        return Chunk(self._branch, start, self.tokens[start : self.computed])

    def draft_chunk(self, nodes: Sequence[int]) -> Chunk:
        """Scratch rows of these nodes, which the caller computes; those of their ancestors come first."""
        tree = self._tree
        assert tree is not None
        first = len(self._row_of)
        for row, node in enumerate(nodes, first):
            parent = tree.parents[node]
            self._row_of[node] = row
            self._depths[row] = tree.depths[node] - 1
            if parent != ROOT:
                self._seen[row] |= self._seen[self._row_of[parent]]
        stop = first + len(nodes)
        tokens = [tree.tokens[node] for node in nodes]
        if len(nodes) == 1 and self._depths[first] == first:  # all rows so far are its ancestors: it goes on a chain
            return Chunk(self._branch, self.computed + first, tokens)
        return Chunk(self._branch, self.computed, tokens, self._seen[first:stop, :stop], self._depths[:stop])

    def _rows_of(self, tokens: Sequence[int]) -> list[int]:
        """Scratch rows that hold the beginning of these tokens, as far as there are any."""
        tree, reached = self._tree, {ROOT: 0}  # place -> its depth, of those on the way
        if tree is None:
            return []
        for node in self._row_of:
            depth = reached.get(tree.parents[node])
            if depth is not None and depth < len(tokens) and tree.tokens[node] == tokens[depth]:
                reached[node] = depth + 1
        node, rows = max(reached, key=lambda place: reached[place]), []
        while node != ROOT:
            rows.append(self._row_of[node])
            node = tree.parents[node]
        return rows[::-1]
