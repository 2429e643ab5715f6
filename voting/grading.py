"""Whether an answer is right: by the same relation that makes clusters, so that no rule has a grader of its own."""

from __future__ import annotations

from voting.answers.clusters import Compare, partition
from voting.answers.equivalence import Equivalence
from voting.answers.finders import as_option
from voting.contract import Sample


class Grader:
    """Compares each pair of answers once. Not thread-safe."""

    def __init__(self, equivalence: Equivalence, compare: Compare | None = None) -> None:
        self._equivalence = equivalence
        self._compare = compare
        self._known: dict[tuple[str, str, bool], bool] = {}

    def right(self, answer: str, gold: str, *, option: bool = False) -> bool:
        """option: the answer is the letter of one, and what is right may be spelled as one."""
        asked = (answer, gold, option)
        if asked not in self._known:
            letter = as_option(gold) if option else None
            pair = [
                Sample(0, gold, letter or gold, option=letter is not None),
                Sample(1, answer, answer, option=option),
            ]
            self._known[asked] = len(partition(pair, self._equivalence, self._compare).clusters) == 1
        return self._known[asked]

    def right_sample(self, sample: Sample, gold: str) -> bool:
        """One that abstains is not right."""
        return not sample.abstains and self.right(sample.answer or "", gold, option=sample.option)
