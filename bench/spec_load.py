"""Throughput of many requests at once: `drafthouse bench spec --part load`.

Counted while as many are at work: at the end, when nothing is left to begin, the slowest requests would decide alone.
Texts have different lengths: plain decoding of equally long ones would go in lockstep, and the next ones would take
over whole rows of the cache, which no traffic does and drafts undo.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.claims import Claim
from bench.progress import Begin, Done
from bench.sampler_runs import Job, Sampling
from bench.spec_texts import CODE, TASKS, TEMPERATURES, Case, case_name, chain_at, prompts
from bench.spec_ways import AUTO, PLAIN, Way, distinct, named, require_drafts
from samplers.chain import Chain
from spec_decode.request import SpecRequest
from spec_decode.statistics import SpecStatistics

AT_ONCE = 16
LEAST = 0.97  # target for auto
_STEP = 37  # between the lengths of one text and the next, around the circle
WAYS = named(PLAIN, AUTO, "prompt lookup", "suffix", "match, auto", "block, auto", "match, 4", "block, 4")


@dataclass(frozen=True)
class Size:
    """How much is asked."""

    requests: int = 64  # of a round
    at_once: int = AT_ONCE
    tokens: int = 96  # at most, of each; on average, of code
    rounds: int = 7
    ways: tuple[Way, ...] = WAYS


FULL = Size()
QUICK = Size(requests=32, tokens=48, rounds=2)


@dataclass
class Rates:
    """Of one way."""

    per_second: list[float] = field(default_factory=list)  # tokens, by round
    done: SpecStatistics = field(default_factory=SpecStatistics)  # of all rounds


@dataclass
class Throughput:
    """Everything that was timed."""

    size: Size
    rates: dict[Case, dict[str, Rates]] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    def ratios(self, case: Case, way: str) -> list[float]:
        """To plain decoding, by round."""
        of_case = self.rates[case]
        return [own / plain for own, plain in zip(of_case[way].per_second, of_case[PLAIN].per_second, strict=True)]


class Measuring:
    """One engine."""

    def __init__(self, sampling: Sampling, size: Size) -> None:
        self._sampling, self._size = sampling, size
        self._prompts = {task: prompts(sampling, task, size.requests) for task in TASKS}

    def measure(self, begin: Begin, done: Done) -> Throughput:
        """Raises Failed."""
        measured = Throughput(self._size)
        begin((1 + self._size.rounds) * len(TEMPERATURES) * len(TASKS))
        for temperature in TEMPERATURES:
            chain = chain_at(self._sampling, temperature)
            ways = distinct(self._size.ways, self._sampling.runner, chain)
            for task in TASKS:
                rates = measured.rates[task, temperature] = {way: Rates() for way in ways}
                for round_ in range(-1, self._size.rounds):  # round -1 warms up, and fills the prefix cache
                    self._round(task, chain, ways, rates, round_)
                    done()
                for way, request in ways.items():
                    require_drafts(way, request, rates[way].done)
        measured.claims = claims(measured)
        return measured

    def _round(
        self, task: str, chain: Chain, ways: dict[str, SpecRequest | None], rates: dict[str, Rates], round_: int
    ) -> None:
        names = list(ways)
        shift = max(0, round_) % len(names)
        for way in names[shift:] + names[:shift]:
            timed = self._sampling.timed(self._jobs(task, chain, max(0, round_), ways[way]), self._size.at_once)
            if round_ < 0:
                continue
            samples = [answer.samples[0] for answer in timed.answers.values()]
            rates[way].per_second.append(timed.busy_tokens / timed.busy_s)
            for sample in samples:
                if sample.speculation is not None:
                    rates[way].done.absorb(sample.speculation)

    def _jobs(self, task: str, chain: Chain, round_: int, speculation: SpecRequest | None) -> list[Job]:
        """Source goes on to its last token; solutions end."""
        size = self._size
        return [
            Job(
                number,
                chain,
                prompt,
                round_ * size.requests + number,
                1,
                _length(number, size.tokens) if task == CODE else size.tokens,
                whole=task == CODE,
                speculation=speculation,
            )
            for number, prompt in enumerate(self._prompts[task])
        ]


def _length(number: int, mean: int) -> int:
    """Of a text of source: from two thirds of the mean to four thirds, in no order."""
    spread = 2 * (mean // 3) + 1
    return mean - mean // 3 + number * _STEP % spread


def claims(measured: Throughput) -> list[Claim]:
    return [
        Claim.of_ratio(
            f"{case_name(case)}: throughput of auto over plain decoding, {measured.size.at_once} requests",
            measured.ratios(case, AUTO),
            LEAST,
        )
        for case in measured.rates
    ]
