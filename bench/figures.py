"""matplotlib, and what pictures of figures with intervals need. It is an optional extra, imported only here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.estimates import Figure

_EXTRA = "drafthouse[bench]"


class NoFigures(RuntimeError):
    """matplotlib is not installed."""


def require() -> Any:
    """matplotlib's figure class, drawing to files only. Raises NoFigures."""
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError:
        raise NoFigures(f"the picture needs matplotlib: pip install '{_EXTRA}'") from None
    return pyplot


def sides(figures: Sequence[Figure], scale: float = 1.0) -> list[list[float]]:
    """Lengths of error bars, [2, F]; never negative: a bootstrap interval need not hold the value itself."""
    return [
        [scale * max(0.0, one.value - one.low) for one in figures],
        [scale * max(0.0, one.high - one.value) for one in figures],
    ]
