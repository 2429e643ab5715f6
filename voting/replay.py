"""Voting rules compared on the same cached samples, with repeats (voting.md section 19)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voting import calibration
from voting.contract import Sample
from voting.coverage import Count
from voting.grading import Grader
from voting.intervals import interval
from voting.poll import Poll, drawn
from voting.repeats import mean, over_repeats
from voting.samples_file import Problem, gold_of, naming

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Grades:
    """What became of every vote of one rule over K samples. Arrays are [repeats, problems]."""

    k: int
    published: bool  # measure calibration as RPC's evaluator does
    credit: Floats  # 0 to 1
    confidence: Floats  # NaN: the vote has none
    abstained: Floats  # share of the samples
    covered: Floats  # 1 where some sample is right

    def pairs(self, repeat: int) -> tuple[Floats, Floats]:
        """Confidence and credit of the votes of a repeat that have a confidence."""
        known = np.isfinite(self.confidence[repeat])
        return self.confidence[repeat][known], self.credit[repeat][known]

    def summary(self, seed: int) -> dict[str, Any]:
        """Finite JSON: means over problems, then mean and population standard deviation over repeats. `ece_interval`:
        bootstrap over problems in the first repeat."""
        binning = "published" if self.published else "width"
        measures = {
            "ece": lambda p, y: calibration.ece(p, y, binning=binning),
            "brier": calibration.brier,
            "nll": lambda p, y: calibration.nll(p, y, clip_credit=self.published),
            "auroc": calibration.auroc,
            "aurc": calibration.aurc,
        }
        pairs = [self.pairs(repeat) for repeat in range(len(self.credit))]
        found = interval(measures["ece"], *pairs[0], seed=seed)
        return {
            **over_repeats("accuracy", [mean(row) for row in self.credit]),
            **{
                name: value
                for measure, of in measures.items()
                for name, value in over_repeats(measure, [of(*pair) for pair in pairs]).items()
            },
            "ece_interval": found and list(found),
            "mean_samples": float(self.k),
            **over_repeats("abstain_rate", [mean(row) for row in self.abstained]),
            **over_repeats("coverage", [mean(row) for row in self.covered]),
            **over_repeats("precision", [mean(y[at > 0]) for y, at in zip(self.credit, self.covered, strict=True)]),
            **over_repeats("without_confidence", [mean(np.isnan(row)) for row in self.confidence]),
        }


def replay(
    problems: Iterable[Problem], polls: Sequence[Poll], ks: Sequence[int], repeats: int, seed: int
) -> dict[str, dict[int, Grades]]:
    """Rule -> K -> grades. Repeat r shuffles with seed + r, alike for all problems with equally many samples.

    problems: at least one, each with a `gold`; they are read once, one after the other. Raises SamplerError, naming
    the problem, for samples that lack what a rule needs, or for too few of them.
    """
    graders = [Grader(poll.reading.equivalence, poll.reading.compare) for poll in polls]
    columns = [_of_problem(problem, polls, graders, ks, repeats, seed) for problem in problems]
    grades = np.stack(columns, axis=-1)  # [rules, Ks, 4, repeats, problems]
    return {
        poll.rule.name: {k: Grades(k, poll.reading.published, *grades[m, i]) for i, k in enumerate(ks)}
        for m, poll in enumerate(polls)
    }


def counts(problems: Iterable[Problem], poll: Poll) -> list[Count]:
    """Samples and right samples of each problem, which has a `gold`."""
    grader = Grader(poll.reading.equivalence, poll.reading.compare)
    return [
        Count(len(problem.samples), sum(grader.right_sample(one, gold_of(problem)) for one in poll.read(problem)))
        for problem in problems
    ]


def _of_problem(
    problem: Problem, polls: Sequence[Poll], graders: Sequence[Grader], ks: Sequence[int], repeats: int, seed: int
) -> Floats:
    """[rules, Ks, 4, repeats]"""
    grades = np.empty((len(polls), len(ks), 4, repeats))
    gold = gold_of(problem)
    for m, (poll, grader) in enumerate(zip(polls, graders, strict=True)):
        with naming(problem):
            samples = poll.read(problem)
            for r in range(repeats):
                order = drawn(samples, max(ks), seed + r)
                for i, k in enumerate(ks):
                    grades[m, i, :, r] = _vote(poll, grader, order[:k], gold)
    return grades


def _vote(poll: Poll, grader: Grader, samples: Sequence[Sample], gold: str) -> tuple[float, float, float, bool]:
    outcome = poll.hold(samples)
    return (
        poll.grade(outcome, grader, gold),
        math.nan if outcome.confidence is None else outcome.confidence,
        outcome.abstain_rate,
        any(grader.right_sample(sample, gold) for sample in samples),
    )
