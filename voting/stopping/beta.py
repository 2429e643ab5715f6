"""Adaptive consistency: stop when the leading answer is probably ahead of the next (arXiv 2305.11860)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samplers.contract import Param
from voting.stopping.base import BaseEvidence, BaseStoppingRule
from voting.stopping.contract import STOPPING_RULES, Label
from voting.stopping.halves import half_tail
from voting.stopping.lead import Lead


@STOPPING_RULES.register
class Beta(BaseStoppingRule):
    """Fires when P(p > 1/2) >= `threshold` for p ~ Beta(a + 1, b + 1), a >= b the two largest counts. It looks after
    every `every` samples. Looking often is not accounted for: of two equally probable answers it soon prefers one.
    """

    name = "beta"
    params = (
        Param("threshold", float, 0.95, low=0.5, high=1, low_open=True, high_open=True),
        Param("every", int, 1, low=1, high=512),
    )

    def start(self, values: Mapping[str, Any]) -> BetaEvidence:
        return BetaEvidence(values["threshold"], values["every"])


class BetaEvidence(BaseEvidence):
    """Counts of the answers."""

    def __init__(self, threshold: float, every: int) -> None:
        self._threshold = threshold
        self._every = every
        self._lead = Lead()
        self._seen = 0

    def add(self, label: Label, weight: float) -> None:
        self._seen += 1
        if label is not None:
            self._lead.add(label)
        if self._seen % self._every == 0:
            first, second = sorted((0, 0, *self._lead.totals.values()))[:-3:-1]
            tail = half_tail(int(first), int(second))
            self.value, self.enough = float(tail), tail >= self._threshold
