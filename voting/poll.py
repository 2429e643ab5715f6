"""One way to vote over samples that have been drawn: a rule, and how answers are found and compared.

The same for every command that works offline, and what `POST /v1/votes` does with the same samples.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from samplers.contract import SamplerError
from voting.answers.abstention import judged
from voting.answers.clusters import Compare, Partition, partition
from voting.answers.equivalence import Equivalence
from voting.answers.extraction import Extraction
from voting.answers.finders import lists_options
from voting.contract import Sample, VotingRule
from voting.grading import Grader
from voting.outcome import Outcome, hold
from voting.rule import read_values
from voting.samples_file import Problem
from voting.selection import tied

PUBLISHED_RPC = {"fit_set": "all", "convergence": "published"}  # how the authors of RPC prune


@dataclass(frozen=True)
class Reading:
    """How samples become answers, and answers clusters.

    published: as the evaluator of RPC does, invalid answers vote like any other, for one another.
    """

    equivalence: Equivalence
    compare: Compare | None = field(default=None, repr=False)  # of rung 3
    extraction: Extraction | None = None  # None: answers are as recorded
    end_of_reasoning: str | None = None
    keep_truncated: bool = False
    guard_repetition: bool = True
    published: bool = False

    def read(self, sample: Sample, rule: VotingRule, options: bool) -> Sample:
        """The sample with its answer, marked if it abstains. options: the prompt lists some (`lists_options`)."""
        if self.extraction is not None:
            found = self.extraction.answer(
                rule.answer_text(sample.text), lists_options=options, end_of_reasoning=self.end_of_reasoning
            )
            sample = replace(
                sample,
                answer=None if found is None else found.answer,
                option=found is not None and found.option,
                abstain_reason=None if sample.abstain_reason == "no_answer" else sample.abstain_reason,
            )
        if self.published:
            return replace(sample, answer=sample.answer or "", abstain_reason=None)
        return judged(sample, keep_truncated=self.keep_truncated, guard_repetition=self.guard_repetition)

    def partition(self, samples: Sequence[Sample], normal: dict[str, str] | None = None) -> Partition:
        """normal: as of `clusters.partition`."""
        return partition(samples, self.equivalence, self.compare, normal)


@dataclass(frozen=True)
class Poll:
    """A rule and its parameters as given."""

    rule: VotingRule
    params: Mapping[str, Any]
    reading: Reading

    def read(self, problem: Problem) -> tuple[Sample, ...]:
        """Its samples with their answers, marked where they abstain."""
        options = lists_options(problem.prompt)
        return tuple(self.reading.read(sample, self.rule, options) for sample in problem.samples)

    def hold(self, samples: Sequence[Sample]) -> Outcome:
        """Raises SamplerError for samples that lack what the rule needs, or parameters that do not fit them."""
        values = read_values(self.rule, self.params, len(samples), f"params.{self.rule.name}")
        found = self.reading.partition(samples)
        return hold(samples, found.clusters, self.rule, values, flags=found.flags)

    def grade(self, outcome: Outcome, grader: Grader, gold: str) -> float:
        """The credit of a vote: 1 if its answer is right, 0 if not or if there is none; as published, all clusters with
        the largest weight have won in equal parts."""
        if outcome.winner is None:
            return 0.0
        winners = {outcome.winner}
        if self.reading.published:
            weights = outcome.tally.weights
            winners = {place for place, weight in enumerate(weights) if tied(weight, max(weights))}
        by_index = {sample.index: sample for sample in outcome.samples}
        firsts = [by_index[outcome.clusters[place].members[0]] for place in winners]
        return sum(grader.right_sample(sample, gold) for sample in firsts) / len(firsts)


def drawn(samples: Sequence[Sample], k: int, seed: int) -> list[Sample]:
    """The first k in an order that depends on the seed and their number only, as if drawn so. Raises SamplerError for
    more than there are."""
    if k > len(samples):
        raise SamplerError(f"'k' must be at most the number of samples, {len(samples)}, got {k}", "k")
    order = list(range(len(samples)))
    random.Random(seed).shuffle(order)
    return [replace(samples[old], index=new) for new, old in enumerate(order[:k])]
