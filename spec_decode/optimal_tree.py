"""The best tree of fixed form, from how often the b-th sibling is accepted (Sequoia, arXiv 2402.12374; the recursion
is that of spec_decode.md 6.3).

F(n) is the largest expected number of tokens of a step, the verifier's own included, for a tree of n nodes with its
root; G(n, b) that of a root with b children. G(1, 0) = 1, G(n, b) = max over m of G(n - m, b - 1) + P_b F(m).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spec_decode.tree_forms import Form


@dataclass(frozen=True)
class OptimalTree:
    """A form, and what it is expected to give."""

    form: Form
    depth: int
    expected: float  # tokens per step, the verifier's own included


def optimal_tree(
    acceptance: Sequence[float], max_nodes: int, max_depth: int, cost: Callable[[int, int], float]
) -> OptimalTree:
    """The tree with the least cost per token.

    acceptance: of the first, second, ... sibling, the probability that it is the one that is accepted; they sum to at
    most 1. cost: seconds of a step with that many drafted nodes (the root not among them) and that depth.
    """
    tables = [_Table(acceptance, None, max_nodes + 1)]
    for _ in range(max_depth):
        tables.append(_Table(acceptance, tables[-1], max_nodes + 1))
    sizes = [(nodes, depth) for depth, table in enumerate(tables) for nodes in range(max_nodes + 1) if table.has(nodes)]
    nodes, depth = min(sizes, key=lambda size: cost(*size) / tables[size[1]].best[size[0] + 1])
    return OptimalTree(_form(tables, nodes + 1, depth), depth, float(tables[depth].best[nodes + 1]))


class _Table:
    """F and G for trees of at most one depth, by the number of nodes with the root; -inf: there is no such tree."""

    def __init__(self, acceptance: Sequence[float], below: _Table | None, most: int) -> None:
        children = len(acceptance) if below is not None else 0
        self.with_children = np.full((children + 1, most + 1), -np.inf)  # G, [b, n]
        self.last = np.zeros((children + 1, most + 1), np.int64)  # nodes of the b-th child's tree, [b, n]
        self.with_children[0, 1] = 1.0
        for b in range(1, children + 1):
            assert below is not None
            for n in range(2, most + 1):
                sizes = np.arange(1, n)
                worth = below.best[sizes]  # -inf stays so, whatever it is multiplied with
                worth = np.multiply(acceptance[b - 1], worth, out=worth.copy(), where=np.isfinite(worth))
                values = self.with_children[b - 1, n - sizes] + worth
                at = int(values.argmax())
                self.with_children[b, n], self.last[b, n] = values[at], sizes[at]
        self.best: NDArray[np.float64] = self.with_children.max(0)  # F, [n]

    def has(self, nodes: int) -> bool:
        return bool(np.isfinite(self.best[nodes + 1]))

    def children(self, n: int) -> list[int]:
        """Sizes of the trees of the best root's children, the first child's first."""
        sizes = []
        for b in range(int(self.with_children[:, n].argmax()), 0, -1):
            sizes.append(int(self.last[b, n]))
            n -= sizes[-1]
        return sizes[::-1]


def _form(tables: Sequence[_Table], n: int, depth: int) -> Form:
    """Level by level."""
    form: list[int] = []
    level = [(-1, n)]
    for table in tables[depth::-1]:
        below = []
        for parent, size in level:
            for child in table.children(size):
                below.append((len(form), child))
                form.append(parent)
        level = below
    return tuple(form)
