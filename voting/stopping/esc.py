"""Early-stopping self-consistency: stop after a window of samples that all agree (Li et al., arXiv 2401.10480).

From the formulas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samplers.contract import Param
from voting.stopping.base import BaseEvidence, BaseStoppingRule
from voting.stopping.contract import STOPPING_RULES, Label


@STOPPING_RULES.register
class Windows(BaseStoppingRule):
    """Fires at the end of the first of the disjoint windows of `window` samples whose answers are all in one cluster;
    a sample that abstains is in none. A last window that is shorter never fires. The answer is the vote over
    everything drawn, or with `answer_from` window that of the window that fired.
    """

    name = "esc"
    params = (
        Param("window", int, 5, low=1, high=100_000),
        Param("answer_from", str, "all", choices=("all", "window")),
    )

    def start(self, values: Mapping[str, Any]) -> WindowEvidence:
        return WindowEvidence(values["window"], values["answer_from"] == "window")


class WindowEvidence(BaseEvidence):
    """The window that is being filled. `value`: the largest share of one answer in the last full one."""

    def __init__(self, window: int, answer_from_window: bool) -> None:
        self._size = window
        self._answer_from_window = answer_from_window
        self._window: list[Label] = []

    def add(self, label: Label, weight: float) -> None:
        self._window.append(label)
        if len(self._window) == self._size:
            most = max((self._window.count(one) for one in {*self._window} - {None}), default=0)
            self.value, self.enough = most / self._size, most == self._size
            self._window = []

    def basis(self, seen: int) -> range:
        return range(seen - self._size if self.enough and self._answer_from_window else 0, seen)
