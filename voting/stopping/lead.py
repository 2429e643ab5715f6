"""Who leads, as votes come in one by one."""

from __future__ import annotations

from collections.abc import Hashable


class Lead:
    """What each label has, and the one that has most: of equal ones whoever got there first."""

    def __init__(self) -> None:
        self.totals: dict[Hashable, float] = {}
        self.leader: Hashable | None = None

    def add(self, label: Hashable, weight: float = 1) -> None:
        self.totals[label] = self.totals.get(label, 0) + weight
        if self.leader is None or self.totals[label] > self.totals[self.leader]:
            self.leader = label
