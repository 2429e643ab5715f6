"""How confident a trace is: means over windows of its token confidences, and scores made of them.

DeepConf, arXiv 2508.15260, from the formulas. Windows have stride 1; a trace that is shorter than one is one window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
SCORES = ("mean", "tail", "lowest", "bottom10")


def window_means(confidences: Sequence[float], window: int) -> Floats:
    """[max(1, T - window + 1)]. Raises ValueError for a trace without tokens."""
    values = np.asarray(confidences, np.float64)
    if not len(values):
        raise ValueError("a trace without tokens has no confidence")
    width = min(window, len(values))
    sums = np.concatenate([[0.0], values.cumsum()])
    means: Floats = (sums[width:] - sums[:-width]) / width
    return means


def trace_score(confidences: Sequence[float], window: int, kind: str) -> float:
    """`mean` of all tokens, `tail` of the last window, `lowest` window, `bottom10`: mean of the lowest tenth of the
    windows, at least one."""
    if kind == "mean":
        return float(np.mean(confidences))
    means = window_means(confidences, window)
    if kind == "tail":
        return float(means[-1])
    if kind == "lowest":
        return float(means.min())
    return float(np.sort(means)[: max(1, int(0.1 * len(means)))].mean())


def percentile(scores: Sequence[float], percent: float) -> float:
    """With linear interpolation."""
    return float(np.percentile(np.asarray(scores, np.float64), percent))
