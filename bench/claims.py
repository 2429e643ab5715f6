"""What is claimed of a method beside what was measured of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.estimates import Figure, verdict
from bench.tables import markdown, spread

_VIOLATED = "VIOLATED"


class Violated(RuntimeError):
    """Something that has to hold of every request does not."""


@dataclass(frozen=True)
class Claim:
    """`verdict`: 'reproduced' or 'contradicted', of a target 'met' or 'missed', where that is known; of what has to be
    'holds' or not."""

    text: str
    measured: str
    verdict: str

    @classmethod
    def of_all(cls, text: str, examined: int, exceptions: Sequence[str]) -> Claim:
        """It has to hold of every one that was examined."""
        shown = "; ".join(exceptions[:3])
        measured = f"{examined - len(exceptions)} of {examined}" + (f", not {shown}" if shown else "")
        return cls(text, measured, _VIOLATED if exceptions else "holds")

    @classmethod
    def of_ratio(
        cls,
        text: str,
        ratios: Sequence[float],
        least: float = -math.inf,
        most: float = math.inf,
        show: Callable[[Sequence[float], int], str] = spread,
    ) -> Claim:
        """A target for the median of repeated measurements: `least` or `most`."""
        met = least <= statistics.median(ratios) <= most
        target = f"at most {most:g}" if math.isfinite(most) else f"at least {least:g}"
        return cls(f"{text}: {target}", show(ratios, 2), "met" if met else "missed")

    @classmethod
    def of_target(cls, text: str, figure: Figure, least: float, measured: str) -> Claim:
        """A target for a mean, met or missed where the whole interval says so. measured: the figure as it is shown."""
        sure = "met" if figure.low >= least else "missed" if figure.high < least else "undecided"
        return cls(text, measured, sure)

    @classmethod
    def of_figure(cls, text: str, figure: Figure, unit: str) -> Claim:
        """A share is positive; `unit` of hundredths."""
        return cls(text, f"{figure.text(1, 100)} {unit}", verdict(figure, above=0.0))

    def as_json(self) -> dict[str, Any]:
        return vars(self)


def table(claims: Sequence[Claim]) -> list[str]:
    return markdown(("claim", "measured", "verdict"), [[one.text, one.measured, one.verdict] for one in claims])


def require(claims: Sequence[Claim]) -> None:
    """Raises Violated."""
    broken = [f"{one.text} ({one.measured})" for one in claims if one.verdict == _VIOLATED]
    if broken:
        raise Violated("; ".join(broken))
