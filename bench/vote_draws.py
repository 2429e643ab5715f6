"""Votes over arithmetic samples beside votes over independent ones: `drafthouse bench voting --part draws`.

Accuracy of self-consistency, how much it varies from request to request, and coverage. K samples of a request are K of
a group of 64: any K of an independent group, and the evenly spread codes of an arithmetic one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bench import estimates
from bench.claims import Claim
from bench.estimates import Array, Figure
from bench.progress import Begin, Done
from bench.vote_rules import KS, SC, ticking
from bench.vote_samples import ARITHMETIC, GROUP, INDEPENDENT, Drawing, Size, sub_group
from voting.coverage import Point, coverage, log_spaced
from voting.grading import Grader
from voting.power_law import PowerLaw, fit_power_law
from voting.replay import counts
from voting.replay_stopping import renumbered
from voting.samples_file import Problem, gold_of

NAMES = "independent", "arithmetic"
Places = Callable[[int, int], Sequence[int]]  # (K, number of the sub-group) -> places in a group


@dataclass(frozen=True)
class Row:
    """One K. Independent and arithmetic samples, and what the latter have more."""

    accuracy: tuple[Figure, Figure, Figure]
    deviation: tuple[Figure, Figure]  # of one problem's credit from request to request, root mean square
    ratio: Figure  # of the deviations, arithmetic over independent
    covered: tuple[Figure, Figure, Figure]  # share of the requests with a right sample


@dataclass
class Draws:
    """Everything that was measured."""

    size: Size
    rows: dict[int, Row] = field(default_factory=dict)
    coverage: list[Point] = field(default_factory=list)  # of independent samples, unbiased
    law: PowerLaw | None = None
    claims: list[Claim] = field(default_factory=list)


class Measuring:
    """The same problems for both."""

    def __init__(self, drawing: Drawing, size: Size) -> None:
        self._drawing, self._size = drawing, size

    def measure(self, begin: Begin, done: Done) -> Draws:
        """Raises Failed, SamplesFileError and OSError."""
        begin(self._drawing.missing(INDEPENDENT, ARITHMETIC) + 2 * self._size.problems)
        independent = self._drawing.read(INDEPENDENT, done)
        arithmetic = self._drawing.read(ARITHMETIC, done)
        plain, spread = votes(ticking(independent, done), block), votes(ticking(arithmetic, done), sub_group)
        draws = Draws(self._size, rows={k: _row(plain[k], spread[k]) for k in KS})
        found = counts(independent, SC.poll)
        draws.coverage = [coverage(found, k, seed=15) for k in sorted({*log_spaced(self._size.pool), *KS})]
        draws.law = fit_power_law([one.k for one in draws.coverage], [one.value for one in draws.coverage])
        draws.claims = _claims(draws)
        return draws


@dataclass(frozen=True)
class Votes:
    """Requests with K samples, several of each group. Arrays are [problems, groups, GROUP / K]."""

    credit: Array
    covered: Array  # 1 where some sample is right

    def __post_init__(self) -> None:
        assert self.credit.shape == self.covered.shape


def votes(problems: Iterable[Problem], places: Places) -> dict[int, Votes]:
    """By K, of self-consistency. Problems have whole groups, one behind the other."""
    poll, grader = SC.poll, Grader(SC.poll.reading.equivalence)
    found: dict[int, list[Array]] = {k: [] for k in KS}
    for problem in problems:
        samples, gold = poll.read(problem), gold_of(problem)
        right = np.array([grader.right_sample(sample, gold) for sample in samples])
        starts = range(0, len(samples), GROUP)
        for k, tables in found.items():
            table = np.empty((2, len(starts), GROUP // k))
            for group, start in enumerate(starts):
                for part in range(GROUP // k):
                    chosen = [start + place for place in places(k, part)]
                    outcome = poll.hold(renumbered(samples, chosen))
                    table[:, group, part] = poll.grade(outcome, grader, gold), right[chosen].any()
            tables.append(table)
    return {k: Votes(*np.stack(tables, axis=1)) for k, tables in found.items()}


def block(k: int, part: int) -> range:
    """Places of k samples that were drawn one after the other."""
    return range(part * k, (part + 1) * k)


def deviation(values: Array) -> float:
    """How much one problem's value varies from request to request. values: [problems, groups, parts] -> root mean
    square over problems of the standard deviation.

    Parts of one group need not be independent of one another (those of an arithmetic group are not), groups are: half
    the mean squared difference of values from different groups has no bias. NaN with one group.
    """
    groups = values.shape[1]
    if groups < 2:
        return float("nan")
    means, squares = values.mean(2), (values**2).mean(2)  # [problems, groups]
    products = (means.sum(1) ** 2 - (means**2).sum(1)) / (groups * (groups - 1))
    return float(np.sqrt(max(0.0, (squares.mean(1) - products).mean())))


def _row(plain: Votes, spread: Votes) -> Row:
    items = len(plain.credit)

    def figure(of: Callable[[npt.NDArray[np.int64]], float]) -> Figure:
        return estimates.bootstrap(of, items, seed=16)

    def means(one: Array, other: Array) -> tuple[Figure, Figure, Figure]:
        one, other = one.mean((1, 2)), other.mean((1, 2))
        return estimates.mean(one, 16), estimates.mean(other, 16), estimates.mean(other - one, 16)

    def ratio(chosen: npt.NDArray[np.int64]) -> float:
        below = deviation(plain.credit[chosen])
        return deviation(spread.credit[chosen]) / below if below > 0 else float("nan")

    return Row(
        means(plain.credit, spread.credit),
        (
            figure(lambda chosen: deviation(plain.credit[chosen])),
            figure(lambda chosen: deviation(spread.credit[chosen])),
        ),
        figure(ratio),
        means(plain.covered, spread.covered),
    )


def _claims(draws: Draws) -> list[Claim]:
    more = "arithmetic samples vote more accurately than independent ones"
    steadier = "votes over arithmetic samples vary less from request to request"
    ratios = {k: row.ratio for k, row in draws.rows.items() if k > 1}
    return [
        _law(draws),
        *(Claim.of_figure(f"{more}, K = {k}", draws.rows[k].accuracy[2], "points") for k in ratios),
        *(
            Claim(f"{steadier}, K = {k}", f"{one.text(2)} times the deviation", estimates.verdict(one, below=1.0))
            for k, one in ratios.items()
        ),
    ]


def _law(draws: Draws) -> Claim:
    text = "coverage grows like an exponentiated power law (Large Language Monkeys): it lies in every point's interval"
    if draws.law is None:
        return Claim(text, "no fit", "undecided")
    inside = [
        one.interval is not None and one.interval.low <= draws.law.at(one.k) <= one.interval.high
        for one in draws.coverage
    ]
    furthest = max(map(abs, draws.law.residuals))
    return Claim(
        text,
        f"{sum(inside)} of {len(inside)}, at most {100 * furthest:.2f} points off",
        "reproduced" if all(inside) else "contradicted",
    )
