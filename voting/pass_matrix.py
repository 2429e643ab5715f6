"""Which codes pass which tests, and what follows for both: groups of codes, and the test worth asking about.

After ConAIR (arXiv 2411.15587), which gives no exact formulas; these are ours. Integers throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple


class Group(NamedTuple):
    """Codes that pass the same tests."""

    members: tuple[int, ...]  # codes, ascending
    score: int  # codes that may still be right, times tests that they pass


@dataclass(frozen=True)
class PassMatrix:
    """Immutable. A test that is validated is hard: a code that fails it is wrong; one that is dropped says nothing."""

    passes: tuple[tuple[bool, ...], ...]  # [codes][tests]
    n_tests: int
    validated: frozenset[int] = frozenset()  # tests
    dropped: frozenset[int] = frozenset()
    wrong: frozenset[int] = frozenset()  # codes that somebody has rejected

    @classmethod
    def of(cls, passes: Sequence[Sequence[bool]]) -> PassMatrix:
        """Raises ValueError without codes or for rows of different lengths."""
        lengths = {len(row) for row in passes}
        if len(lengths) != 1:
            raise ValueError("every code needs a result for every test")
        return cls(tuple(tuple(map(bool, row)) for row in passes), lengths.pop())

    def groups(self) -> list[Group]:
        """By first member."""
        tests = [test for test in range(self.n_tests) if test not in self.dropped]
        alike: dict[tuple[bool, ...], list[int]] = {}
        for code, row in enumerate(self.passes):
            alike.setdefault(tuple(row[test] for test in tests), []).append(code)
        return [
            Group(tuple(codes), sum(map(self._may_be_right, codes)) * sum(vector)) for vector, codes in alike.items()
        ]

    def next_test(self) -> int | None:
        """Of the tests without a verdict, the one whose pass fraction, groups weighed by their score, is closest to one
        half; of equal ones the first. None: one group is left at most, or no test."""
        scored = [group for group in self.groups() if group.score]
        left = [test for test in range(self.n_tests) if test not in self.validated | self.dropped]
        if len(scored) < 2 or not left:
            return None
        total = sum(group.score for group in scored)

        def off_half(test: int) -> int:
            return abs(2 * sum(group.score for group in scored if self.passes[group.members[0]][test]) - total)

        return min(left, key=off_half)

    def validate(self, test: int) -> PassMatrix:
        return replace(self, validated=self.validated | {test}, dropped=self.dropped - {test})

    def drop(self, test: int) -> PassMatrix:
        return replace(self, validated=self.validated - {test}, dropped=self.dropped | {test})

    def rerun(self, test: int, column: Sequence[bool]) -> PassMatrix:
        """With other results of one test. Raises ValueError unless there is one per code."""
        rows = zip(self.passes, column, strict=True)
        return replace(self, passes=tuple((*row[:test], bool(now), *row[test + 1 :]) for row, now in rows))

    def reject(self, codes: Sequence[int]) -> PassMatrix:
        return replace(self, wrong=self.wrong | {*codes})

    def restore(self, codes: Sequence[int]) -> PassMatrix:
        return replace(self, wrong=self.wrong - {*codes})

    def _may_be_right(self, code: int) -> bool:
        return code not in self.wrong and all(self.passes[code][test] for test in self.validated)
