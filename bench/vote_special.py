"""Rules that need prompts of their own, chains or an engine that aborts: `drafthouse bench voting --part special`.

Verbalised confidence, universal self-consistency, sequential inverse-entropy voting and DeepConf online. Each beside
what it is to improve on, for the same problems and as many samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from bench import estimates
from bench.claims import Claim
from bench.estimates import Array, Figure
from bench.progress import Begin, Done
from bench.vote_rules import DEEPCONF, IEW, KS, MOST, SC, WINDOW, Method, mean_credit, ticking
from bench.vote_samples import (
    ATTEMPTS,
    CHAINS,
    INDEPENDENT,
    JUDGED,
    JUDGED_KS,
    VERBALISED,
    Drawing,
    Size,
    judged_votes,
    judging,
)
from voting.contract import Sample, Screening
from voting.grading import Grader
from voting.poll import Poll, drawn
from voting.replay import replay
from voting.replay_stopping import renumbered
from voting.rule import read_values
from voting.rules.deepconf import ABORTED
from voting.samples_file import Problem, gold_of
from voting.trace_monitor import TraceMonitor

CHAIN_KS = (3, 6, ATTEMPTS)
SEQUENTIAL = Method("iew, sequential", "iew", MappingProxyType({"mode": "sequential"}))
ONLINE = Method(f"deepconf online, window {WINDOW}", "deepconf", MappingProxyType({"mode": "online", "window": WINDOW}))
VERBAL, JUDGE = Method("verbalised", "verbalised"), Method("usc", "usc")


@dataclass(frozen=True)
class Row:
    """One rule and K."""

    method: str
    k: int
    problems: int
    accuracy: Figure
    beside: str  # the method it is compared with
    other: Figure  # its accuracy
    gain: Figure
    usable: float  # share of its samples, or of the judge's replies, that it can use
    saved: Figure | None = None  # share of the tokens


@dataclass
class Special:
    """Everything that was measured."""

    size: Size
    rows: list[Row] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)


class Measuring:
    """The same problems for a rule and what it is compared with."""

    def __init__(self, drawing: Drawing, size: Size) -> None:
        self._drawing, self._size = drawing, size
        self._grader = Grader(SC.poll.reading.equivalence)

    def measure(self, begin: Begin, done: Done) -> Special:
        """Raises Failed, SamplesFileError and OSError."""
        size = self._size
        begin(self._drawing.missing(INDEPENDENT, VERBALISED, JUDGED, CHAINS) + size.problems)
        problems = self._drawing.read(INDEPENDENT, done)
        few = problems[: size.special_problems]
        special = Special(size)
        special.rows += self._verbalised(few, self._drawing.read(VERBALISED, done))
        special.rows += self._judged(few, self._drawing.read(JUDGED, done))
        special.rows += self._chains(few, self._drawing.read(CHAINS, done))
        special.rows.append(self._online(problems, done))
        special.claims = _claims(special.rows)
        return special

    def _verbalised(self, problems: Sequence[Problem], verbalised: Sequence[Problem]) -> list[Row]:
        ks = [k for k in KS if k <= self._size.verbalised]
        repeats = self._size.repeats
        found = replay(verbalised, [VERBAL.poll], ks, repeats, seed=0)[VERBAL.rule]
        plain = replay(problems, [SC.poll], ks, repeats, seed=0)[SC.rule]
        return [
            _row(VERBAL, k, mean_credit(found[k]), SC, mean_credit(plain[k]), 1 - float(found[k].abstained.mean()))
            for k in ks
        ]

    def _judged(self, problems: Sequence[Problem], replies: Sequence[Problem]) -> list[Row]:
        """A vote whose judge has said nothing that can be used is one of self-consistency."""
        rule = judging()
        credit = np.zeros((2, len(JUDGED_KS), self._size.special_repeats, len(problems)))
        asked, unclear = np.zeros((2, len(JUDGED_KS)))
        for column, (problem, said) in enumerate(zip(problems, replies, strict=True)):
            for vote, reply in zip(judged_votes(problem, self._size), said.samples, strict=True):
                samples, place = vote.samples, JUDGED_KS.index(vote.k)
                if vote.question is not None:
                    samples = rule.answer(samples, vote.question, reply.text)
                outcome = JUDGE.poll.hold(samples)
                asked[place] += vote.question is not None
                unclear[place] += outcome.fallback == "usc_parse"
                credit[:, place, vote.repeat, column] = (
                    JUDGE.poll.grade(outcome, self._grader, gold_of(problem)),
                    self._credit(SC.poll, problem, vote.samples),
                )
        return [
            _row(
                JUDGE, k, credit[0, i].mean(0), SC, credit[1, i].mean(0), 1 - unclear[i] / asked[i] if asked[i] else 1.0
            )
            for i, k in enumerate(JUDGED_KS)
        ]

    def _chains(self, problems: Sequence[Problem], chains: Sequence[Problem]) -> list[Row]:
        """The first K attempts of each chain beside as many independent samples."""
        rows = []
        for k in CHAIN_KS:
            places = [range(start, start + k) for start in range(0, self._size.chains * ATTEMPTS, ATTEMPTS)]
            found = self._mean(SEQUENTIAL.poll, chains, places)
            beside = self._mean(IEW.poll, problems, places)
            answered = [not sample.abstains for problem in chains for sample in SEQUENTIAL.poll.read(problem)]
            rows.append(_row(SEQUENTIAL, k, found, IEW, beside, float(np.mean(answered))))
        return rows

    def _mean(self, poll: Poll, problems: Iterable[Problem], places: Sequence[Sequence[int]]) -> Array:
        """[problems]: mean credit of the votes over the samples at these places."""
        credits = []
        for problem in problems:
            samples = poll.read(problem)
            credits.append([self._credit(poll, problem, renumbered(samples, some)) for some in places])
        return np.mean(np.array(credits), axis=1)

    def _online(self, problems: Sequence[Problem], done: Done) -> Row:
        """What would have been drawn, from samples that were drawn in full."""
        repeats = self._size.special_repeats
        credit, saved, voted = np.zeros((3, repeats, len(problems)))
        for column, problem in enumerate(ticking(problems, done)):
            samples = ONLINE.poll.read(problem)
            for r in range(repeats):
                order = drawn(samples, MOST, r)
                begun = online(order, ONLINE.poll)
                credit[r, column] = ONLINE.poll.grade(ONLINE.poll.hold(begun), self._grader, gold_of(problem))
                saved[r, column] = 1 - sum(one.n_tokens for one in begun) / sum(one.n_tokens for one in order)
                voted[r, column] = sum(not one.abstains for one in begun) / len(begun)
        beside = replay(problems, [DEEPCONF.poll], [MOST], repeats, seed=0)[DEEPCONF.rule][MOST]
        row = _row(ONLINE, MOST, credit.mean(0), DEEPCONF, mean_credit(beside), float(voted.mean()))
        return replace(row, saved=estimates.mean(saved.mean(0), seed=17))

    def _credit(self, poll: Poll, problem: Problem, samples: Sequence[Sample]) -> float:
        return poll.grade(poll.hold(samples), self._grader, gold_of(problem))


def online(samples: Sequence[Sample], poll: Poll) -> list[Sample]:
    """What DeepConf draws if these are the traces in full: the warm-up; later ones up to where they are aborted; and
    none any more once there is consensus. Samples have confidences."""
    assert isinstance(poll.rule, Screening)
    values = read_values(poll.rule, poll.params, len(samples))
    begun = list(samples[: values["warmup"]])
    least = poll.rule.threshold(begun, values)
    for sample in samples[values["warmup"] :]:
        begun.append(sample if least is None else _cut(sample, TraceMonitor(values["window"], least)))
        if not begun[-1].abstains and poll.rule.has_consensus(poll.hold(begun).tally, values):
            break
    return begun


def _cut(sample: Sample, monitor: TraceMonitor) -> Sample:
    for length, confidence in enumerate(sample.confidences or (), 1):
        if monitor.feed(confidence):
            return replace(sample, n_tokens=length, abstain_reason=ABORTED)
    return sample


def _row(method: Method, k: int, credit: Array, beside: Method, other: Array, usable: float) -> Row:
    figures = (estimates.mean(values, seed=17) for values in (credit, other, credit - other))
    accuracy, base, gain = figures
    return Row(method.name, k, len(credit), accuracy, beside.name, base, gain, usable)


def _claims(rows: Sequence[Row]) -> list[Claim]:
    last = {row.method: row for row in rows}  # with the largest K

    def claim(method: Method, text: str) -> Claim:
        row = last[method.name]
        asked = f"{text}, K = {row.k}"
        return Claim.of_figure(asked, row.gain, "points") if row.usable else Claim(asked, "none usable", "undecided")

    return [
        claim(VERBAL, "stated confidences are better weights than none"),
        claim(JUDGE, "a judge chooses more accurately than the majority (paper: alike)"),
        claim(SEQUENTIAL, "attempts that see the one before vote more accurately than independent ones"),
        claim(ONLINE, "DeepConf online is more accurate than offline"),
    ]
