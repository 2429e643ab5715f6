"""A certificate that one answer is the unique mode of what a prompt's samples answer (voting.md section 12.3)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from voting.stopping.bets import Bets, CountBets, WeightedBets
from voting.stopping.contract import Label
from voting.stopping.lead import Lead


class Certificate:
    """Independent, identically distributed samples come in one by one; wrong targets are certified with a probability
    of at most alpha, however often one looks.

    The target is chosen without the samples that it is tested on: it leads after `warmup` of them that do not abstain,
    and only those that follow count. When another answer has more of these, a fresh test of that one begins, up to
    `max_targets` tests in all, each at alpha / max_targets. What is certified stays so: later samples are not looked
    at.
    """

    def __init__(self, alpha: float, warmup: int, max_targets: int, weighted: bool) -> None:
        self.target: Label = None  # None: still warming up
        self.certified = False
        self.n_used = 0  # samples looked at, those included that abstain
        self._alpha = alpha
        self._goal = max_targets / Fraction(repr(alpha))  # 1 / alpha of the decimal that was written
        self._warmup = warmup  # samples that are still to come before there is a target
        self._targets_left = max_targets
        self._new_bets: Callable[[], Bets] = WeightedBets if weighted else CountBets
        self._lead = Lead()  # during the warm-up; afterwards of what follows it
        self._bets: Bets = self._new_bets()

    @property
    def e(self) -> Fraction | float:
        """The e-value of the present test; 1 where nothing has been bet."""
        return self._bets.e(self.target)

    def add(self, label: Label, weight: float = 1) -> None:
        """weight: 1 unless weighted, else in [0, 1]."""
        if self.certified:
            return
        self.n_used += 1
        if label is None:
            return
        self._lead.add(label, weight)
        if self._warmup:
            self._warmup -= 1
            if not self._warmup:
                self._test(self._lead.leader)
                self._lead = Lead()
            return
        self._bets.add(label, weight)
        self.certified = self.e >= self._goal
        totals = self._lead.totals
        if self._targets_left and totals[label] > totals.get(self.target, 0):
            self._test(label)

    def report(self) -> dict[str, Any]:
        """Finite JSON, but for the target, which is a cluster's label."""
        return {
            "target": self.target,
            "e": as_float(self.e),
            "alpha": self._alpha,
            "certified": self.certified,
            "n_used": self.n_used,
        }

    def _test(self, target: Label) -> None:
        self.target = target
        self._targets_left -= 1
        self._bets = self._new_bets()


def as_float(e: Fraction | float) -> float:
    """The largest float where there is none."""
    return float(min(e, Fraction(sys.float_info.max)))
