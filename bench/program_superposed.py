"""Superposed drafts beside independent samples: `drafthouse bench programs --part superposed`.

Wall time of n drafts against n samples that are asked for one after the other or as one request, and how often a
held-out continuation is among them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np

from bench import estimates, pass_at
from bench.claims import Claim
from bench.estimates import Array, Figure
from bench.held_out import NextLine, next_lines
from bench.progress import Begin, Done
from bench.sampler_runs import Answer, Job, Sampling
from samplers.chain import Chain, resolve

COUNTS = (3, 8)
TARGETS = {3: 2.0, 8: 3.5}  # times faster than samples one after the other
PAPER = {3: 2.44, 8: 3.54}
WITH, WITHOUT, SAMPLES = "superposed, n-grams", "superposed", "top-p 0.95"
FLATTER = "superposed, n-grams, T = 0.3"  # the default of 0.06 was found for models a thousand times as large
IN_TURN, BATCHED = "samples in turn", "samples batched"
HEAD_CHARACTERS = 10
HEAD, LINE = f"first {HEAD_CHARACTERS} characters", "whole line"


@dataclass(frozen=True)
class Size:
    """How much is asked."""

    lines: int = 400
    prompt_tokens: int = 128
    tokens: int = 10  # of a draft
    timed_lines: int = 10
    rounds: int = 9


FULL = Size()
QUICK = Size(lines=60, timed_lines=4, rounds=3)


@dataclass
class Superposed:
    """Everything that was measured."""

    size: Size
    seconds: dict[int, dict[str, list[float]]] = field(default_factory=dict)  # n -> way -> of each round, all prompts
    # measure -> n -> method -> share of prompts whose continuation is among the drafts
    coverage: dict[str, dict[int, dict[str, Figure]]] = field(default_factory=dict)
    covered: dict[str, int] = field(default_factory=dict)  # measure -> prompts
    claims: list[Claim] = field(default_factory=list)

    def ratios(self, n: int, way: str, base: str) -> list[float]:
        """How many times as long `base` took, by round."""
        of_n = self.seconds[n]
        return [slow / fast for slow, fast in zip(of_n[base], of_n[way], strict=True)]


class Measuring:
    """One model, the same prompts for all ways."""

    def __init__(self, sampling: Sampling, size: Size) -> None:
        self._sampling = sampling
        self._size = size
        vocab, facts = sampling.runner.vocab_size, sampling.runner.facts
        fields: dict[str, dict[str, float]] = {WITHOUT: {"alpha": 0.0}}
        if facts.ngrams is not None:
            fields = {WITH: {}, **fields, FLATTER: {"superposed_temperature": 0.3}}
        self._drafting = {
            name: resolve({"sampler": {"name": "superposed", **one}}, vocab, facts) for name, one in fields.items()
        }
        self._timed_drafting = [name for name in self._drafting if name != FLATTER]  # which costs what the default does
        self._sampled = resolve({"top_p": 0.95}, vocab, facts)
        self._lines = next_lines(sampling.codec.fast, size.lines, size.prompt_tokens)
        self._superposed = Superposed(size)

    def measure(self, begin: Begin, done: Done) -> Superposed:
        """Raises Failed."""
        jobs = list(self._jobs())
        begin(len(jobs) + (1 + self._size.rounds) * len(COUNTS))
        self._time(done)
        texts = {key: self._texts(answer) for key, answer in self._sampling.answers(jobs, done).items()}
        gaps = self._cover(texts)
        self._superposed.claims = [*self._speed_claims(), *gaps]
        return self._superposed

    # --- speed

    def _time(self, done: Done) -> None:
        """Ways in turn on every prompt, each first as often as any other; the first round only warms up."""
        chosen = self._lines[:: max(1, len(self._lines) // self._size.timed_lines)][: self._size.timed_lines]
        for n in COUNTS:
            ways = [*self._timed_drafting, IN_TURN, BATCHED]
            of_n: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(1 + self._size.rounds):
                seconds = dict.fromkeys(ways, 0.0)
                for item, line in enumerate(chosen):
                    shift = (turn + item) % len(ways)
                    for way in ways[shift:] + ways[:shift]:
                        # nothing is known of the prompt yet, whichever way comes first
                        salt = f"{n} {way} {turn} {item}"
                        seconds[way] += self._sampling.timed(self._timed(way, n, line, salt)).seconds
                if turn:
                    for way in ways:
                        of_n[way].append(seconds[way])
                done()
            self._superposed.seconds[n] = of_n

    def _timed(self, way: str, n: int, line: NextLine, salt: str) -> list[Job]:
        """All of the same length: nothing ends before its last token."""

        def job(chain: Chain, seed: int, count: int) -> Job:
            return Job(salt, chain, line.prompt, seed, count, self._size.tokens, whole=True, salt=salt)

        if way == IN_TURN:
            return [job(self._sampled, seed, 1) for seed in range(n)]
        return [job(self._drafting.get(way, self._sampled), 0, n)]

    def _speed_claims(self) -> list[Claim]:
        return [
            Claim.of_ratio(
                f"n = {n}: {way} times faster than samples in turn (paper {PAPER[n]:g})",
                self._superposed.ratios(n, way, IN_TURN),
                TARGETS[n],
            )
            for n in COUNTS
            for way in self._timed_drafting
        ]

    # --- coverage

    def _jobs(self) -> Iterator[Job]:
        most = max(COUNTS)
        for item, line in enumerate(self._lines):
            for n in COUNTS:
                for name, chain in self._drafting.items():
                    yield Job((name, n, item), chain, line.prompt, item, n, self._size.tokens)
            yield Job((SAMPLES, most, item), self._sampled, line.prompt, item, most, self._size.tokens)

    def _texts(self, answer: Answer) -> list[str]:
        return [self._sampling.codec.decode(sample.tokens) for sample in answer.samples]

    def _cover(self, texts: dict[Hashable, list[str]]) -> list[Claim]:
        short = [item for item, line in enumerate(self._lines) if len(line.ids) <= self._size.tokens]
        claims = []
        for measure, items in ((HEAD, list(range(len(self._lines)))), (LINE, short)):
            self._superposed.covered[measure] = len(items)
            if not items:
                continue
            wanted = [self._wanted(measure, self._lines[item]) for item in items]

            def found(name: str, n: int, items: list[int] = items, wanted: list[str] = wanted) -> pass_at.Right:
                right = np.zeros((len(items), n), bool)  # a draft that is not there is not right
                for row, (item, start) in enumerate(zip(items, wanted, strict=True)):
                    of_one = texts[name, n, item]
                    right[row, : len(of_one)] = [text.startswith(start) for text in of_one]
                return right

            sampled = pass_at.of_independent(found(SAMPLES, max(COUNTS)))
            of_measure = self._superposed.coverage[measure] = {}
            for n in COUNTS:
                values: dict[str, Array] = {name: found(name, n).any(1).astype(float) for name in self._drafting}
                values[SAMPLES] = sampled[:, n - 1]
                of_measure[n] = {name: estimates.mean(value, seed=7) for name, value in values.items()}
                for name in self._drafting:
                    gap = estimates.mean(values[name] - values[SAMPLES], seed=7)
                    text = f"n = {n}: {name} covers the {measure} more often than {SAMPLES}"
                    claims.append(Claim.of_figure(text, gap, "points"))
        return claims

    @staticmethod
    def _wanted(measure: str, line: NextLine) -> str:
        return line.text[:HEAD_CHARACTERS] if measure == HEAD else line.line + "\n"
