"""How often some of k answers are right, and at what price a curve of that reaches a given height."""

from __future__ import annotations

from math import comb

import numpy as np
import numpy.typing as npt

from bench.estimates import Array, Figure, bootstrap

Right = npt.NDArray[np.bool_]


def of_independent(right: Right) -> Array:
    """right: [items, n], answers drawn alike -> [items, n]: the chance that k = 1..n of them, taken without
    replacement, hold a right one. Unbiased (Chen et al., arXiv 2107.03374, equation 1)."""
    n = right.shape[1]
    missed = np.array([[comb(n - c, k) / comb(n, k) for k in range(1, n + 1)] for c in range(n + 1)])
    return 1.0 - missed[right.sum(1)]


def of_ordered(right: Right) -> Array:
    """right: [items, n], answers in the order they are returned -> [items, n]: whether the first k hold a right one."""
    return np.logical_or.accumulate(right, 1).astype(float)


def price(curve: Array, tokens: Array, height: float) -> float:
    """Tokens at which a curve, `curve` [n] over `tokens` [n], reaches a height: straight lines from nothing for nothing
    to its last point. Above that it costs as much as the last point, which is too little."""
    heights, costs = np.concatenate([[0.0], curve]), np.concatenate([[0.0], tokens])
    rises = np.concatenate([[True], np.diff(np.maximum.accumulate(heights)) > 0])  # a level is reached where it begins
    return float(np.interp(height, heights[rises], costs[rises]))


def saved_at_equal_height(height: Array, tokens: Array, curve: Array, curve_tokens: Array, seed: int) -> Figure:
    """1 - tokens over what the curve pays for the same mean height; items are resampled for both together.

    height, tokens: [items]; curve, curve_tokens: [items, n].
    """

    def saved(chosen: npt.NDArray[np.int64]) -> float:
        paid = price(curve[chosen].mean(0), curve_tokens[chosen].mean(0), float(height[chosen].mean()))
        return 1.0 - float(tokens[chosen].mean()) / paid if paid > 0 else float("nan")

    return bootstrap(saved, len(height), seed)
