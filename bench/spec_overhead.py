"""What a step spends outside of forward passes: `drafthouse bench spec --part overhead`.

The engine says what its parts have taken; passes of both models are clocked where they are called, for most of drafting
is passes of the draft model. Where a small one drafts whole chains in one script, its passes count as drafting.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.claims import Claim
from bench.progress import Begin, Done
from bench.sampler_runs import Job, Sampling
from bench.spec_texts import CODE, chain_at, prompts
from bench.spec_ways import PLAIN, Way, named, require_drafts
from bench.tables import spread
from engine.runners.torch.forward import Forward
from engine.runners.torch.step import Step
from spec_decode.request import SpecRequest
from spec_decode.statistics import SpecStatistics

AT_ONCE = 16
MOST = 0.1  # target for the tree
TEMPERATURE = 1.0
_TREE = {"shape": "static", "max_nodes": 8, "depth": 4}
TREE = Way("tree of 8", {"draft": "draft_model", "num_tokens": 4, "num_drafts": 2, "tree": _TREE})
WAYS = (*named(PLAIN, "match, 4", "block, 4"), TREE)
FORWARD, DRAFT = "forward", "draft"


@dataclass(frozen=True)
class Size:
    """How much is asked."""

    tokens: int = 128  # of each of the requests
    rounds: int = 7


FULL = Size()
QUICK = Size(tokens=32, rounds=2)


@dataclass
class Overhead:
    """Everything that was timed."""

    size: Size
    parts: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # way -> part -> share of steps, by round
    step_ms: dict[str, list[float]] = field(default_factory=dict)  # way -> of a step, by round
    claims: list[Claim] = field(default_factory=list)

    def other(self, way: str) -> list[float]:
        """Share of everything but forward passes, by round."""
        return [1 - share for share in self.parts[way][FORWARD]]


class Measuring:
    """One engine."""

    def __init__(self, sampling: Sampling, size: Size) -> None:
        self._sampling, self._size = sampling, size
        self._chain = chain_at(sampling, TEMPERATURE)
        self._prompts = prompts(sampling, CODE, AT_ONCE)

    def measure(self, begin: Begin, done: Done) -> Overhead:
        """Raises Failed."""
        requests = {way.name: way.request(self._sampling.runner, self._chain) for way in WAYS}
        measured = Overhead(self._size, {name: {} for name in requests}, {name: [] for name in requests})
        begin((1 + self._size.rounds) * len(requests))
        for round_ in range(-1, self._size.rounds):  # round -1 warms up, and fills the prefix cache
            for name, request in requests.items():
                steps, seconds = self._run(name, request, max(0, round_))
                if round_ >= 0:
                    whole = sum(seconds.values())
                    for part, own in seconds.items():
                        measured.parts[name].setdefault(part, []).append(own / whole)
                    measured.step_ms[name].append(1000 * whole / steps)
                done()
        measured.claims = [claim(measured)]
        return measured

    def _run(self, way: str, speculation: SpecRequest | None, seed: int) -> tuple[int, dict[str, float]]:
        """(steps, seconds by part) of all requests together."""
        jobs = [
            Job(
                number,
                self._chain,
                prompt,
                seed * AT_ONCE + number,
                1,
                self._size.tokens,
                True,
                speculation=speculation,
            )
            for number, prompt in enumerate(self._prompts)
        ]
        before = self._sampling.runner.stats()
        with clocked() as clock:
            timed = self._sampling.timed(jobs, AT_ONCE)
        after = self._sampling.runner.stats()
        done = SpecStatistics()
        for answer in timed.answers.values():
            done.absorb(answer.samples[0].speculation or SpecStatistics())
        require_drafts(way, speculation, done)
        earlier, later = before.step_seconds or {}, after.step_seconds or {}
        seconds = {part: later[part] - earlier.get(part, 0.0) for part in later}
        return after.steps - before.steps, divided(seconds, clock.seconds)


@dataclass
class Clock:
    seconds: float = 0.0  # of all passes


@contextmanager
def clocked() -> Iterator[Clock]:
    """Clocks every forward pass of this process, of whichever model."""
    clock, call = Clock(), Forward.__call__

    def timed(self: Forward, step: Step) -> Tensor:
        began = time.perf_counter()
        logits = call(self, step)
        if logits.is_cuda:
            torch.cuda.synchronize(logits.device)
        clock.seconds += time.perf_counter() - began
        return logits

    Forward.__call__ = timed  # type: ignore[method-assign]
    try:
        yield clock
    finally:
        Forward.__call__ = call  # type: ignore[method-assign]


def divided(seconds: Mapping[str, float], passes: float) -> dict[str, float]:
    """Seconds of the engine's parts, with those of all passes in one part and without them in the others. seconds: the
    engine's own, of which drafting holds the draft model's passes; passes: of both models."""
    drafting = seconds.get(DRAFT, 0.0)
    own = max(0.0, drafting - max(0.0, passes - seconds[FORWARD]))
    return {**seconds, DRAFT: own, FORWARD: seconds[FORWARD] + drafting - own}


def claim(measured: Overhead) -> Claim:
    shares = measured.other(TREE.name)
    text = f"{AT_ONCE} requests, a tree of 8 nodes each: at most 10 % of a step is not a forward pass"
    met = sorted(shares)[len(shares) // 2] <= MOST
    return Claim(text, f"{spread([100 * one for one in shares], 1)} %", "met" if met else "missed")
