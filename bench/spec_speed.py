"""Wall time of one request after the other: `drafthouse bench spec --part speed`.

Every way to speculate beside plain decoding, on every prompt in turn; time per token, for texts drawn in different ways
differ in length.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from bench.claims import Claim
from bench.progress import Begin, Done
from bench.sampler_runs import Job, Sampling
from bench.spec_texts import CODE, TASKS, TEMPERATURES, Case, Prompt, case_name, chain_at, prompts
from bench.spec_ways import DRAWN, PLAIN, WAYS, Way, distinct, require_drafts
from samplers.chain import Chain
from spec_decode.request import SpecRequest
from spec_decode.statistics import SpecStatistics

BEST, BEST_DRAWN = 1.8, 1.3  # targets for the best of all, and of those with a draft model
KINDS = {way.name: way.kind for way in WAYS}


@dataclass(frozen=True)
class Size:
    """How much is asked."""

    counts: tuple[int, int] = (8, 16)  # prompts of source, and word problems
    tokens: tuple[int, int] = (128, 96)  # at most, of each
    rounds: int = 7
    ways: tuple[Way, ...] = WAYS

    def count(self, task: str) -> int:
        return self.counts[TASKS.index(task)]

    def longest(self, task: str) -> int:
        return self.tokens[TASKS.index(task)]


FULL = Size()
QUICK = Size(counts=(2, 4), tokens=(48, 48), rounds=2)


@dataclass
class Timing:
    """Of one way."""

    seconds: list[float] = field(default_factory=list)  # per token, by round
    done: SpecStatistics = field(default_factory=SpecStatistics)  # of all rounds


@dataclass
class Speed:
    """Everything that was timed."""

    size: Size
    timings: dict[Case, dict[str, Timing]] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    def ratios(self, case: Case, way: str) -> list[float]:
        """How many times as fast as plain decoding, by round."""
        of_case = self.timings[case]
        return [plain / own for plain, own in zip(of_case[PLAIN].seconds, of_case[way].seconds, strict=True)]

    def best(self, case: Case, kind: str = "") -> str:
        """The way with the highest median; of this kind alone."""
        ways = [way for way in self.timings[case] if way != PLAIN and kind in ("", KINDS[way])]
        return max(ways, key=lambda way: statistics.median(self.ratios(case, way)))


class Measuring:
    """One engine, one request at a time."""

    def __init__(self, sampling: Sampling, size: Size) -> None:
        self._sampling, self._size = sampling, size
        self._prompts = {task: prompts(sampling, task, size.count(task)) for task in TASKS}

    def measure(self, begin: Begin, done: Done) -> Speed:
        """Raises Failed."""
        speed = Speed(self._size)
        begin((1 + self._size.rounds) * len(TEMPERATURES) * sum(self._size.counts))
        for temperature in TEMPERATURES:
            chain = chain_at(self._sampling, temperature)
            ways = distinct(self._size.ways, self._sampling.runner, chain)
            for task in TASKS:
                timings = speed.timings[task, temperature] = {way: Timing() for way in ways}
                for round_ in range(-1, self._size.rounds):  # round -1 warms up, and fills the prefix cache
                    self._round(task, chain, ways, timings, round_, done)
                for way, request in ways.items():
                    require_drafts(way, request, timings[way].done)
        speed.claims = claims(speed)
        return speed

    def _round(
        self,
        task: str,
        chain: Chain,
        ways: dict[str, SpecRequest | None],
        timings: dict[str, Timing],
        round_: int,
        done: Done,
    ) -> None:
        """All ways one after the other on every prompt, each first as often as any other."""
        names, seconds, tokens = list(ways), dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0)
        for item, prompt in enumerate(self._prompts[task]):
            shift = (max(0, round_) * len(self._prompts[task]) + item) % len(names)
            for way in names[shift:] + names[:shift]:
                job = self._job(task, chain, prompt, max(0, round_), ways[way])
                timed = self._sampling.timed([job])
                sample = timed.answers[job.key].samples[0]
                seconds[way] += timed.seconds
                tokens[way] += len(sample.logprobs)
                if round_ >= 0 and sample.speculation is not None:
                    timings[way].done.absorb(sample.speculation)
            done()
        if round_ >= 0:
            for way in names:
                timings[way].seconds.append(seconds[way] / tokens[way])

    def _job(self, task: str, chain: Chain, prompt: Prompt, seed: int, speculation: SpecRequest | None) -> Job:
        """Source goes on to its last token; solutions end."""
        longest = self._size.longest(task)
        return Job(0, chain, prompt, seed, 1, longest, whole=task == CODE, speculation=speculation)


def claims(speed: Speed) -> list[Claim]:
    made = []
    for case in speed.timings:
        for kind, least, text in (("", BEST, "the best"), (DRAWN, BEST_DRAWN, "the best with a draft model")):
            way = speed.best(case, kind)
            said = f"{case_name(case)}: {text} ({way}) times as fast as plain decoding"
            made.append(Claim.of_ratio(said, speed.ratios(case, way), least))
    return made
