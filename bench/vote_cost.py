"""What a vote costs beside the same samples without one: `drafthouse bench voting --part cost`.

A server in a process of its own; each prompt is asked with n = 16 and with `voting`, in turn, with the same seed, so
that both draw the same samples.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.claims import Claim
from bench.held_out import word_problems
from bench.progress import Begin, Done
from bench.server_process import ServerProcess
from bench.tables import spread
from bench.vote_samples import TEMPERATURE
from models.embedded import TARGET

SAMPLES = 16
TARGET_RATIO = 1.1
PLAIN = f"n = {SAMPLES}"
VOTES: Mapping[str, Mapping[str, Any]] = {
    "sc": {"rule": "sc"},
    "rpc": {"rule": "rpc"},
    "deepconf": {"rule": "deepconf"},
    "sc, beta, 4 at once": {"rule": "sc", "stop": "beta", "at_once": 4},
}


@dataclass(frozen=True)
class Size:
    """How often it is asked."""

    problems: int = 8  # of a round
    rounds: int = 15
    solution_tokens: int = 96


FULL = Size()
QUICK = Size(problems=2, rounds=2)


@dataclass
class Cost:
    """Everything that was timed."""

    size: Size
    seconds: dict[str, list[float]] = field(default_factory=dict)  # way -> by round, all prompts
    tokens: dict[str, int] = field(default_factory=dict)  # way -> of all rounds, as `usage` counts them
    claims: list[Claim] = field(default_factory=list)

    def ratios(self, way: str) -> list[float]:
        """Over plain samples, by round."""
        return [one / base for one, base in zip(self.seconds[way], self.seconds[PLAIN], strict=True)]


def ways() -> dict[str, dict[str, Any]]:
    """Name -> what a request has beside its prompt."""
    votes = {name: {"voting": {"samples": SAMPLES, "extract": "hash", **vote}} for name, vote in VOTES.items()}
    return {PLAIN: {"n": SAMPLES}, **votes}


class Measuring:
    """Starts a server of its own."""

    def __init__(self, threads: int, size: Size) -> None:
        self._threads, self._size = threads, size
        self._questions = [problem.question for problem in word_problems(size.problems)]

    def measure(self, begin: Begin, done: Done) -> Cost:
        """Raises RuntimeError for a server that does not start, and HTTPError for one that refuses."""
        asked = ways()
        begin((1 + self._size.rounds) * len(asked))
        cost = Cost(self._size, {name: [] for name in asked}, dict.fromkeys(asked, 0))
        with (
            ServerProcess("--threads", str(self._threads)) as server,
            httpx.Client(base_url=server.url, timeout=60) as to,
        ):
            for round_ in range(-1, self._size.rounds):  # round -1 warms up, and fills the prefix cache
                names = list(asked)[::-1] if round_ % 2 else list(asked)
                for name in names:
                    seconds, tokens = self._round(to, asked[name], max(0, round_))
                    if round_ >= 0:
                        cost.seconds[name].append(seconds)
                        cost.tokens[name] += tokens
                    done()
        cost.claims = [claim(cost, name) for name in asked if name != PLAIN and "stop" not in asked[name]["voting"]]
        return cost

    def _round(self, to: httpx.Client, fields: Mapping[str, Any], seed: int) -> tuple[float, int]:
        """(wall time of all prompts one after the other, tokens generated)."""
        tokens, began = 0, time.perf_counter()
        for question in self._questions:
            body = {
                "model": TARGET,
                "messages": [{"role": "user", "content": question}],
                "temperature": TEMPERATURE,
                "max_tokens": self._size.solution_tokens,
                "seed": seed,
                **fields,
            }
            answer = to.post("/v1/chat/completions", json=body)
            answer.raise_for_status()
            tokens += answer.json()["usage"]["completion_tokens"]
        return time.perf_counter() - began, tokens


def claim(cost: Cost, name: str) -> Claim:
    ratios = cost.ratios(name)
    met = statistics.median(ratios) <= TARGET_RATIO
    return Claim(
        f"a vote ({name}) takes at most {TARGET_RATIO:g} times as long as {PLAIN}",
        spread(ratios, 2),
        "met" if met else "missed",
    )
