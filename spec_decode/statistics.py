"""What speculation has done for one choice, as its response shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spec_decode.acceptance import Verified
from spec_decode.tree_forms import depths


@dataclass
class SpecStatistics:
    """Steps without drafts count as well: they emit one token, or none where it failed.

    An engine that tells less of a choice says so, and then so does everything that its statistics are added to.
    """

    steps: int = 0
    drafted: int = 0  # nodes
    accepted: int = 0
    emitted: int = 0  # tokens
    repaired: int = 0  # residuals that rounding has left without mass
    reached: Counter[int] = field(default_factory=Counter)  # depth -> steps that had a draft there
    passed: Counter[int] = field(default_factory=Counter)  # depth -> steps that accepted one there
    sizes: Counter[int] = field(default_factory=Counter)  # deepest draft of a step -> steps
    drafted_by: Counter[str] = field(default_factory=Counter)  # source -> nodes
    accepted_by: Counter[str] = field(default_factory=Counter)  # source -> accepted nodes
    complete: bool = True  # False: there were drafts that are not counted here
    plain_counted: bool = True  # False: there were steps without drafts that are not

    def add(self, verified: Verified, emitted: int, source: str) -> None:
        """A step with a draft, which may have come out empty. emitted: tokens that went into the output, fewer than
        accepted ones and one where it ended; source: of the draft."""
        if not verified.form:
            self.add_plain(1, emitted)
            return
        self.steps += 1
        self.emitted += emitted
        deepest = max(depths(verified.form))
        self.drafted += len(verified.form)
        self.accepted += len(verified.path)
        self.repaired += verified.repaired
        self.drafted_by[source] += len(verified.form)
        self.accepted_by[source] += len(verified.path)
        self.reached.update(range(1, deepest + 1))
        self.passed.update(range(1, len(verified.path) + 1))
        self.sizes[deepest] += 1

    def add_plain(self, steps: int, emitted: int) -> None:
        """So many steps without drafts, and the tokens that they gave."""
        self.steps += steps
        self.emitted += emitted
        if steps:
            self.sizes[0] += steps

    def absorb(self, other: SpecStatistics) -> None:
        """Of another choice."""
        for name in ("steps", "drafted", "accepted", "emitted", "repaired"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("reached", "passed", "sizes", "drafted_by", "accepted_by"):
            getattr(self, name).update(getattr(other, name))
        self.complete &= other.complete
        self.plain_counted &= other.plain_counted

    def copy(self) -> SpecStatistics:
        twin = SpecStatistics()
        twin.absorb(self)
        return twin

    def report(self, level: str, sources: Sequence[str] = ()) -> dict[str, Any]:
        """level: none, summary or detailed, as `stats` of the request; sources: names, where there are several. What
        is not known is not there."""
        if level == "none" or not self.complete:
            return {}
        summary: dict[str, Any] = {"drafted": self.drafted, "accepted": self.accepted}
        if self.plain_counted:
            mean = self.emitted / self.steps if self.steps else 0.0
            summary = {"steps": self.steps} | summary | {"mean_emitted": mean}
        if sources:
            summary["sources"] = {
                name: {"drafted": self.drafted_by[name], "accepted": self.accepted_by[name]} for name in sources
            }
        if level == "summary":
            return summary
        return summary | {
            "acceptance_by_offset": [self.passed[depth] / self.reached[depth] for depth in sorted(self.reached)],
            "draft_lengths": {str(length): self.sizes[length] for length in sorted(self.sizes)},
        }
