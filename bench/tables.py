"""Markdown tables and the spread of repeated timings."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import numpy as np


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def spread(values: Sequence[float], digits: int) -> str:
    """Median (lowest-highest)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def quartiles(values: Sequence[float], digits: int) -> str:
    """Median (first..third quartile)."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


def rounded(values: Iterable[float], digits: int = 6) -> list[float]:
    return [round(one, digits) for one in values]
