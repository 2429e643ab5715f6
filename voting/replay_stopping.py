"""Stopping rules tried on cached samples: what they save, and what it costs in accuracy (voting.md section 12)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from samplers.contract import SamplerError
from voting.contract import Sample
from voting.grading import Grader
from voting.outcome import Outcome
from voting.poll import Poll, drawn
from voting.repeats import mean, over_repeats
from voting.samples_file import Problem, gold_of, naming
from voting.stopping.watch import Stop

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stopped:
    """What became of every vote under one stopping rule. Arrays are [repeats, problems]."""

    cap: int  # all samples
    credit: Floats  # 0 to 1
    used: Floats  # samples
    fired: Floats  # 1 where the rule has
    kept: Floats  # 1 where the answer is that of all samples, or neither has one
    full_credit: Floats  # of all samples

    def summary(self) -> dict[str, Any]:
        """Finite JSON: means over problems, then mean and population standard deviation over repeats. `saved`: share
        of the samples; `lost`: accuracy with all of them minus that with those drawn."""
        measures = {
            "accuracy": self.credit,
            "full_accuracy": self.full_credit,
            "lost": self.full_credit - self.credit,
            "mean_samples": self.used,
            "saved": 1 - self.used / self.cap,
            "fired": self.fired,
            "same_answer": self.kept,
        }
        return {
            key: value
            for name, table in measures.items()
            for key, value in over_repeats(name, [mean(row) for row in table]).items()
        }


def try_stops(
    problems: Iterable[Problem], poll: Poll, stops: Sequence[Stop], cap: int, repeats: int, seed: int
) -> list[Stopped]:
    """One result per stopping rule; the answer comes from the poll's rule over what was drawn. Samples are shuffled and
    problems read as by `replay`, which raises the same errors."""
    grader = Grader(poll.reading.equivalence, poll.reading.compare)
    columns = [_of_problem(problem, poll, grader, stops, cap, repeats, seed) for problem in problems]
    found = np.stack(columns, axis=-1)  # [rules, 5, repeats, problems]
    return [Stopped(cap, *tables) for tables in found]


def _of_problem(
    problem: Problem, poll: Poll, grader: Grader, stops: Sequence[Stop], cap: int, repeats: int, seed: int
) -> Floats:
    """[rules, 5, repeats]"""
    found = np.empty((len(stops), 5, repeats))
    gold = gold_of(problem)
    with naming(problem):
        samples = poll.read(problem)
        for r in range(repeats):
            taken = drawn(samples, cap, seed + r)
            full = poll.hold(taken)
            for place, stop in enumerate(stops):
                watch = stop.over(_looked_at(full, stop))
                outcome = poll.hold(renumbered(taken, watch.basis))
                found[place, :, r] = (
                    poll.grade(outcome, grader, gold),
                    watch.seen,
                    watch.fired,
                    _says_the_same(outcome, full, watch.basis),
                    poll.grade(full, grader, gold),
                )
    return found


def _looked_at(outcome: Outcome, stop: Stop) -> list[tuple[int | None, float]]:
    """Label and weight of every sample."""
    label = {index: place for place, cluster in enumerate(outcome.clusters) for index in cluster.members}
    if "logprobs" not in stop.needs:
        return [(label.get(sample.index), 1.0) for sample in outcome.samples]
    for sample in outcome.samples:
        if sample.mean_logprob is None and sample.index in label:
            raise SamplerError(f"'{stop.rule.name}' needs 'mean_logprob' of sample {sample.index}", "mean_logprob")
    return [(label.get(one.index), 0.0 if one.mean_logprob is None else one.q) for one in outcome.samples]


def renumbered(samples: Sequence[Sample], places: Sequence[int]) -> list[Sample]:
    """The samples at these places, as if no others had been drawn."""
    return [replace(samples[place], index=index) for index, place in enumerate(places)]


def _says_the_same(outcome: Outcome, full: Outcome, basis: range) -> bool:
    if outcome.winner is None or full.winner is None:
        return outcome.winner == full.winner
    return basis[outcome.clusters[outcome.winner].members[0]] in full.clusters[full.winner].members
