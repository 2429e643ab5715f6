"""A vote among programs that a person helps to decide, test by test (voting.md section 15, code mode).

Immutable, like `VoteSession`. Runs nothing: whoever has a sandbox fills the matrix, and for a corrected test the
column that comes with the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from samplers.contract import SamplerError
from voting.pass_matrix import Group, PassMatrix
from voting.verdicts import ACCEPT, CORRECT, REJECT, UnknownTarget, Verdict, VoteClosed

MAX_ROUNDS = 4


@dataclass(frozen=True)
class CodeSession:
    """Clusters are groups of codes that pass the same tests, each named by the sample of its first code, so that names
    survive a test that splits or joins groups."""

    codes: tuple[str, ...]
    samples: tuple[int, ...]  # index of the sample that each code comes from
    expected: tuple[str, ...]  # output of each test
    matrix: PassMatrix
    max_rounds: int = MAX_ROUNDS  # verdicts on tests after which no more are asked for
    log: tuple[Verdict, ...] = ()
    status: str = "open"  # then 'accepted' or 'corrected'
    decided: int | None = None  # place of the code that has won
    correction: str | None = None  # the code as it was corrected

    @property
    def winner(self) -> Group | None:
        """The group with the largest score, of equal ones the first. None: no group has any, or the answer is a code
        that nobody gave."""
        groups = self.matrix.groups()
        if self.decided is not None:
            return next(group for group in groups if self.decided in group.members)
        best = max(groups, key=lambda group: group.score, default=None)
        return best if best is not None and best.score and self.correction is None else None

    @property
    def tie(self) -> bool:
        first = self.winner
        if first is None or self.status != "open":
            return False
        return sum(group.score == first.score for group in self.matrix.groups()) > 1

    @property
    def answer(self) -> str | None:
        if self.correction is not None:
            return self.correction
        return None if self._shown is None else self.codes[self._shown]

    @property
    def representative(self) -> int | None:
        """Index of the sample to be shown. None: no sample gives the answer."""
        return None if self._shown is None else self.samples[self._shown]

    @property
    def ask(self) -> int | None:
        """The test to ask about next. None: enough is known, or asked."""
        rounds = sum(verdict.target == "test" for verdict in self.log)
        return None if self.status != "open" or rounds >= self.max_rounds else self.matrix.next_test()

    def after(self, verdict: Verdict) -> CodeSession:
        if self.status != "open":
            raise VoteClosed("the vote is closed", "verdict")
        if verdict.verdict == CORRECT and verdict.value is None:
            raise SamplerError("'value' is required", "value")
        logged = replace(self, log=(*self.log, verdict))
        return logged._on_test(verdict) if verdict.target == "test" else logged._on_group(verdict)

    def report(self) -> dict[str, Any]:
        """Finite JSON."""
        groups = self.matrix.groups()
        total = sum(group.score for group in groups)
        share = {group: group.score / total if total else None for group in groups}
        return {
            "answer": self.answer,
            "confidence": None if self.winner is None else share[self.winner],
            "tie": self.tie,
            "clusters": [
                {
                    "id": self.samples[group.members[0]],
                    "answer": self.codes[group.members[0]],
                    "count": len(group.members),
                    "weight": group.score,
                    "share": share[group],
                    "members": [self.samples[code] for code in group.members],
                    "rejected": self.matrix.wrong.issuperset(group.members),
                }
                for group in groups
            ],
            "codes": list(self.samples),
            "tests": [
                {
                    "id": test,
                    "expected": expected,
                    "validated": test in self.matrix.validated,
                    "rejected": test in self.matrix.dropped,
                    "passes": [row[test] for row in self.matrix.passes],
                }
                for test, expected in enumerate(self.expected)
            ],
            "next_test": self.ask,
            "status": self.status,
            "log": [verdict.report() for verdict in self.log],
        }

    def _on_test(self, verdict: Verdict) -> CodeSession:
        test = verdict.id
        if not 0 <= test < self.matrix.n_tests:
            raise UnknownTarget(f"the vote has no test {test}", "test_id")
        if verdict.verdict == REJECT:
            return replace(self, matrix=self.matrix.drop(test))
        if verdict.verdict == ACCEPT:
            return replace(self, matrix=self.matrix.validate(test))
        if verdict.column is None or len(verdict.column) != len(self.codes):
            raise SamplerError(f"a corrected test needs 'passes', one for each of {len(self.codes)} codes", "passes")
        expected = (*self.expected[:test], str(verdict.value), *self.expected[test + 1 :])
        return replace(self, expected=expected, matrix=self.matrix.rerun(test, verdict.column).validate(test))

    def _on_group(self, verdict: Verdict) -> CodeSession:
        groups = self.matrix.groups()
        group = next((group for group in groups if self.samples[group.members[0]] == verdict.id), None)
        if group is None:
            raise UnknownTarget(f"the vote has no cluster {verdict.id}", "cluster_id")
        if verdict.verdict == REJECT:
            return replace(self, matrix=self.matrix.reject(group.members))
        if verdict.verdict == ACCEPT:
            matrix = self.matrix.restore(group.members)
            return replace(self, matrix=matrix, status="accepted", decided=group.members[0])
        same = next((code for code, text in enumerate(self.codes) if text == verdict.value), None)
        return replace(self, status="corrected", decided=same, correction=verdict.value)

    @property
    def _shown(self) -> int | None:
        """Place of the code that is the answer: of the group that leads the first that nobody has rejected."""
        if self.decided is not None or self.winner is None:
            return self.decided
        return next(code for code in self.winner.members if code not in self.matrix.wrong)
