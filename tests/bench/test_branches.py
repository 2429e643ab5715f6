"""Typical sampling's two sides are compared with top-p each on its own."""

from __future__ import annotations

import numpy as np
import pytest

from bench import estimates
from bench.sampler_quality import Measuring, Quality, Size


def test_each_side_of_the_lowest_nll_is_a_curve_of_its_own() -> None:
    # top-p repeats 0.5 - 0.1 NLL; typical 0.1 less than that at small parameters, 0.05 more at large ones
    top_p = {f"top-p {x}": (x, 0.5 - 0.1 * x) for x in (1.0, 2.0, 4.0)}
    small = {f"typical {i}": (x, 0.4 - 0.1 * x) for i, x in enumerate((3.8, 3.0))}
    large = {f"typical {i + 3}": (x, 0.55 - 0.1 * x) for i, x in enumerate((2.9, 3.9))}
    typical = {**small, "typical 2": (2.5, 0.27), **large}
    source = {
        name: {"nll": np.full(5, x), "repeated_4": np.full(5, y)} for name, (x, y) in {**top_p, **typical}.items()
    }
    figures = {
        name: {measure: estimates.mean(values, seed=0) for measure, values in one.items()}
        for name, one in source.items()
    }
    quality = Quality(Size(), top_p={n: figures[n] for n in top_p}, typical={n: figures[n] for n in typical})
    upper, lower = Measuring._gaps(source, quality)
    assert upper.settings == ("typical 2", "typical 3", "typical 4")
    assert lower.settings == ("typical 0", "typical 1", "typical 2")
    assert upper.gap is not None and lower.gap is not None
    assert (upper.gap.low, upper.gap.high) == (2.5, 3.9)
    assert 0.02 < upper.gap.difference.value < 0.06
    assert lower.gap.difference.value == pytest.approx(-0.09, abs=0.02)
