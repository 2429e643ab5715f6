"""Every voting rule over the same samples of word problems: `drafthouse bench voting --part rules`.

Accuracy and calibration against the number of samples K, how many samples a rule needs to be as accurate as
self-consistency with 64, and what papers say about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import estimates
from bench.claims import Claim
from bench.estimates import Array, Figure, verdict
from bench.progress import Begin, Done
from bench.vote_samples import GROUP, INDEPENDENT, READING, Drawing, Size
from voting import calibration
from voting.contract import VOTING_RULES
from voting.poll import Poll
from voting.replay import Grades, replay
from voting.samples_file import Problem
from voting.scorers import LIKELIHOOD, with_likelihoods

KS = (1, 2, 4, 8, 16, 32, GROUP)
MOST = KS[-1]
BEYOND = 2 * MOST  # stands for more samples than were tried
HALF = MOST // 2
WINDOW = 8  # tokens; answers are shorter than DeepConf's own window, which then is the mean of a trace


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    name: str
    rule: str
    params: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def poll(self) -> Poll:
        return Poll(VOTING_RULES.get(self.rule), self.params, READING)


SC, PC, RPC, PPL = (Method(name, name) for name in ("sc", "pc", "rpc", "ppl"))
JOINT = Method("pc, joint", "pc", {"score": "joint"})
PC_APART, RPC_APART = (
    Method(f"{name}, equal paths apart", name, {"duplicates": "each"}) for name in (PC.name, RPC.name)
)
DEEPCONF = Method(f"deepconf, window {WINDOW}", "deepconf", {"window": WINDOW})
IEW = Method("iew, parallel", "iew")
COMPLEXITY = Method("complexity", "complexity")
METHODS = (
    SC,
    PC,
    JOINT,
    RPC,
    PC_APART,
    RPC_APART,
    PPL,
    Method("bon, likelihood", "bon", {"scorer": LIKELIHOOD}),
    Method("bon, likelihood, softmax", "bon", {"scorer": LIKELIHOOD, "aggregate": "softmax"}),
    Method("deepconf", "deepconf"),
    DEEPCONF,
    Method(f"deepconf, window {WINDOW}, best tenth", "deepconf", {"window": WINDOW, "eta": 10}),
    IEW,
    COMPLEXITY,
)


@dataclass
class Rules:
    """Everything that was measured. By method, then by K."""

    size: Size
    summaries: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)  # of `Grades.summary`
    accuracy: dict[str, dict[int, Figure]] = field(default_factory=dict)
    gain: dict[str, Figure] = field(default_factory=dict)  # over sc with `MOST` samples
    needed: dict[str, Figure] = field(default_factory=dict)  # least K as accurate as sc with `MOST`; `BEYOND`: none
    distinct: float = 0.0  # completions among the pool of a problem, mean
    distinct_right: float = 0.0  # right ones among these
    claims: list[Claim] = field(default_factory=list)


class Measuring:
    """All rules vote over the same samples in the same orders."""

    def __init__(self, drawing: Drawing, size: Size) -> None:
        self._drawing, self._size = drawing, size

    def measure(self, begin: Begin, done: Done) -> Rules:
        """Raises Failed, SamplesFileError and OSError."""
        begin(self._drawing.missing(INDEPENDENT) + len(METHODS) * self._size.problems)
        problems = [scored(problem) for problem in self._drawing.read(INDEPENDENT, done)]
        grades: dict[str, dict[int, Grades]] = {}
        for method in METHODS:
            asked = ticking(problems, done)
            grades[method.name] = replay(asked, [method.poll], KS, self._size.repeats, seed=0)[method.rule]
        rules = Rules(self._size)
        reference = mean_credit(grades[SC.name][MOST])
        for name, by_k in grades.items():
            credits = {k: mean_credit(one) for k, one in by_k.items()}
            rules.summaries[name] = {k: one.summary(seed=0) for k, one in by_k.items()}
            rules.accuracy[name] = {k: estimates.mean(one, seed=11) for k, one in credits.items()}
            rules.gain[name] = estimates.mean(credits[MOST] - reference, seed=11)
            rules.needed[name] = needed(np.stack(list(credits.values())), reference)
        rules.distinct, rules.distinct_right = _paths(problems)
        rules.claims = _claims(rules, grades)
        return rules


def scored(problem: Problem) -> Problem:
    """With the likelihood as a score."""
    return replace(problem, samples=tuple(with_likelihoods(problem.samples)))


def ticking(problems: Sequence[Problem], done: Done) -> Iterator[Problem]:
    for problem in problems:
        yield problem
        done()


def mean_credit(grades: Grades) -> Array:
    """[problems]: over repeats."""
    mean: Array = grades.credit.mean(0)
    return mean


def needed(credits: Array, reference: Array) -> Figure:
    """The least of `KS` at which a rule is at least as accurate as the reference. credits: [Ks, problems], reference:
    [problems], both means over repeats."""

    def least(chosen: npt.NDArray[np.int64]) -> float:
        reached = np.flatnonzero(credits[:, chosen].mean(1) >= reference[chosen].mean() - 1e-12)
        return float(KS[reached[0]] if len(reached) else BEYOND)

    return estimates.bootstrap(least, len(reference), seed=12)


def ece_gap(one: Grades, other: Grades) -> Figure:
    """ECE of one rule minus that of another, means over repeats."""

    def mean(grades: Grades, chosen: npt.NDArray[np.int64]) -> float:
        pairs = zip(grades.confidence[:, chosen], grades.credit[:, chosen], strict=True)
        return float(np.mean([calibration.ece(p[np.isfinite(p)], y[np.isfinite(p)]) for p, y in pairs]))

    return estimates.bootstrap(lambda chosen: mean(one, chosen) - mean(other, chosen), one.credit.shape[1], seed=13)


def _paths(problems: Iterable[Problem]) -> tuple[float, float]:
    """(different completions of a problem, those of them that are right), means."""
    different: list[tuple[int, int]] = []
    for problem in problems:
        paths = {sample.identity: sample.answer == problem.gold for sample in problem.samples}
        different.append((len(paths), sum(paths.values())))
    total, right = np.mean(different, axis=0)
    return float(total), float(right)


def _claims(rules: Rules, grades: Mapping[str, Mapping[int, Grades]]) -> list[Claim]:
    def gap(better: Method, worse: Method) -> Figure:
        return estimates.mean(mean_credit(grades[better.name][MOST]) - mean_credit(grades[worse.name][MOST]), seed=11)

    def claim(text: str, better: Method, worse: Method) -> Claim:
        return Claim.of_figure(f"{text}, K = {MOST}", gap(better, worse), "points")

    sc, rpc, rpc_apart = (grades[method.name][MOST] for method in (SC, RPC, RPC_APART))
    paths = "PC with the paths' own probabilities, as in its theory,"
    return [
        claim("RPC is more accurate than self-consistency (RPC's authors)", RPC, SC),
        _half("RPC", rules.needed[RPC.name]),
        claim("RPC with equal paths apart is more accurate than self-consistency", RPC_APART, SC),
        _half("RPC with equal paths apart", rules.needed[RPC_APART.name]),
        claim("RPC with equal paths apart is more accurate than PC so: pruning helps", RPC_APART, PC_APART),
        claim("PC is more accurate than self-consistency (RPC's authors: about equal)", PC, SC),
        claim(f"{paths} is more accurate than self-consistency", JOINT, SC),
        _half(paths, rules.needed[JOINT.name]),
        Claim.of_figure(f"RPC has a lower ECE than self-consistency, K = {MOST}", ece_gap(sc, rpc), "points lower"),
        Claim.of_figure(
            f"RPC with equal paths apart has a lower ECE than self-consistency, K = {MOST}",
            ece_gap(sc, rpc_apart),
            "points lower",
        ),
        Claim.of_figure(
            f"PC with the paths' own probabilities has a lower ECE than self-consistency, K = {MOST}",
            ece_gap(sc, grades[JOINT.name][MOST]),
            "points lower",
        ),
        claim("self-consistency is more accurate than the most probable path (RPC's authors)", SC, PPL),
        claim("DeepConf's weights are more accurate than the majority", DEEPCONF, SC),
        claim("inverse-entropy weights are more accurate than the majority", IEW, SC),
        claim("the majority of the longest paths is more accurate than that of all (Fu et al.)", COMPLEXITY, SC),
    ]


def _half(name: str, found: Figure) -> Claim:
    text = f"{name} needs at most {HALF} samples to be as accurate as self-consistency with {MOST}"
    return Claim(text, needed_text(found), verdict(found, below=HALF + 0.5))


def needed_text(found: Figure) -> str:
    value, low, high = (f"> {MOST}" if one > MOST else f"{one:.0f}" for one in vars(found).values())
    return f"{value} ({low}..{high})"
