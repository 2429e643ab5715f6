"""What each server costs under the same load, and how long it takes to start: the measurement of `bench runners`.

All servers exist at once and one of them runs at a time: the processes of the others are stopped, for an idle server
need not be an idle process. Ratios are within a round, in which every way has its turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from tokenizers import Tokenizer

from bench.claims import Claim
from bench.held_out import source_prompts
from bench.progress import Begin, Done
from bench.runner_profile import Hot, hottest, sampled
from bench.runner_ways import CHAIN, OURS, TORCH, VLLM, WAYS, Rig, Way
from bench.server_process import HttpServer, metrics
from bench.stream_load import Load, LoadFailed, ask
from bench.tables import quartiles
from models.embedded import TARGET, locate

PROMPT_TOKENS = 128
THROUGHPUT = {OURS: 0.97, CHAIN: 0.9}  # least, over vLLM's server
FIRST_TOKEN = 1.1  # most, of ours over vLLM's server
TORCH_ALONE, TORCH_MANY = 1.5, 1.2  # least throughput over vLLM's server, at one request and at several
START = 0.2  # most, of the torch runner's start over that of vLLM's server
_STEP_PART = 'drafthouse_step_seconds{part="'


@dataclass(frozen=True)
class Size:
    """How much is asked."""

    loads: Mapping[int, int] = field(default_factory=lambda: {1: 8, 8: 16, 32: 64})  # at once -> requests of a round
    tokens: int = 96  # of each
    rounds: int = 7
    starts: int = 2
    greedy: int = 4  # prompts for the comparison of texts
    greedy_tokens: int = 48


FULL = Size()
QUICK = Size(loads={1: 1, 8: 8}, tokens=8, rounds=1, starts=1)


@dataclass
class Timing:
    """Of one way under one load, by round."""

    tokens_per_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    processor_ms: list[dict[str, float]] = field(default_factory=list)  # per token, by process; '': the server itself
    step_ms: list[dict[str, float]] = field(default_factory=list)  # per token, by part of the torch runner's steps


@dataclass
class Start:
    """Of one server, by start."""

    ready_s: list[float] = field(default_factory=list)  # to the first 200 of /health
    answered_s: list[float] = field(default_factory=list)  # to the first token


@dataclass
class Costs:
    """Everything that was measured."""

    size: Size
    conditions: str
    timings: dict[int, dict[str, Timing]] = field(default_factory=dict)  # at once -> way
    starts: dict[str, Start] = field(default_factory=dict)  # by server
    profiles: dict[tuple[int, str], list[Hot]] = field(default_factory=dict)  # by load and way, where asked for
    claims: list[Claim] = field(default_factory=list)

    def faster(self, at_once: int, way: str) -> list[float]:
        """Throughput over that of vLLM's server, by round."""
        own, base = self.timings[at_once][way], self.timings[at_once][VLLM]
        return _ratios(own.tokens_per_s, base.tokens_per_s)

    def later(self, at_once: int, way: str) -> list[float]:
        """Time to the first token over that of vLLM's server, by round."""
        own, base = self.timings[at_once][way], self.timings[at_once][VLLM]
        return _ratios(own.first_s, base.first_s)


class Measuring:
    """Starts servers of its own. Nothing of them is left when it returns or raises."""

    def __init__(self, rig: Rig, size: Size) -> None:
        self._rig, self._size = rig, size
        tokenizer = Tokenizer.from_file(f"{locate(TARGET)}/tokenizer.json")
        count = max(size.greedy, *size.loads.values())
        self._texts = [tokenizer.decode(list(ids)) for ids in source_prompts(tokenizer, count, PROMPT_TOKENS)]

    def measure(self, begin: Begin, done: Done) -> Costs:
        """Raises RuntimeError for a server that does not start or answer."""
        size = self._size
        begin(size.starts * len(self._rig.starters) + (1 + size.rounds) * len(size.loads) * len(WAYS))
        costs = Costs(size, self._rig.conditions, starts={name: Start() for name in self._rig.starters})
        with ExitStack() as kept:
            servers = self._start_all(costs, kept, done)
            greedy = self._greedy(servers)
            for at_once in size.loads:
                timings = costs.timings[at_once] = {way.name: Timing() for way in WAYS}
                for round_ in range(-1, size.rounds):  # round -1 warms up, and is not counted
                    for way in WAYS[::-1] if round_ % 2 else WAYS:
                        self._round(servers[way.server], way, at_once, round_, timings[way.name])
                        done()
            if self._rig.profiles is not None:
                for at_once, way in itertools.product(size.loads, WAYS):
                    path = self._rig.profiles / f"runners-{way.slug}-{at_once}.txt"
                    costs.profiles[at_once, way.name] = self._profile(servers[way.server], way, at_once, path)
        costs.claims = [*greedy, *claims(costs)]
        return costs

    def _start_all(self, costs: Costs, kept: ExitStack, done: Done) -> dict[str, HttpServer]:
        """Every server as often as it is to be started, in turn; those of the last time are kept, and stand still."""
        servers: dict[str, HttpServer] = {}
        for number in range(self._size.starts):
            names = list(self._rig.starters)[:: -1 if number % 2 else 1]
            for name in names:
                with ExitStack() as once:
                    server = once.enter_context(self._rig.starters[name]())
                    costs.starts[name].ready_s.append(server.ready_s)
                    asked = server.age_s
                    costs.starts[name].answered_s.append(
                        asked + self._ask(server, WAYS[0], 1, ["def "], 2, 0.0).first_s
                    )
                    if number == self._size.starts - 1:
                        server.group.pause()
                        servers[name] = server
                        kept.push(once.pop_all())
                done()
        return servers

    def _greedy(self, servers: Mapping[str, HttpServer]) -> list[Claim]:
        """Whether all read the same prompts and write the same texts."""
        prompts = self._prompts("greedy", self._size.greedy)
        found = {}
        for name, server in servers.items():
            with _running(server):
                answers = self._ask(server, Way(name, name), 1, prompts, self._size.greedy_tokens, 0.0).answers
            found[name] = [(answer.prompt_tokens, answer.tokens, answer.text) for answer in answers]
        return [
            Claim.of_all(
                f"greedy texts of the {name} are those of {VLLM}",
                len(prompts),
                [repr(own[-1]) for own, theirs in zip(found[name], found[VLLM], strict=True) if own != theirs],
            )
            for name in servers
            if name != VLLM
        ]

    def _round(self, server: HttpServer, way: Way, at_once: int, round_: int, timing: Timing) -> None:
        size = self._size
        prompts = self._prompts(f"{'chain' if way.seeded else 'plain'} {at_once} {round_}", size.loads[at_once])
        with _running(server):
            steps = _step_seconds(server)
            processor = server.group.processor_seconds()
            load = self._ask(server, way, at_once, prompts, size.tokens)
            processor_ms = _per_token(processor, server.group.processor_seconds(), load.tokens)
            step_ms = _per_token(steps, _step_seconds(server), load.tokens)
        if round_ >= 0:
            timing.tokens_per_s.append(load.tokens_per_s)
            timing.first_s.append(load.first_s)
            timing.processor_ms.append(processor_ms)
            timing.step_ms.append(step_ms)

    def _profile(self, server: HttpServer, way: Way, at_once: int, path: Path) -> list[Hot]:
        """One more load, which is not timed. Raises NoProfiler, or RuntimeError where py-spy fails."""
        prompts = self._prompts(f"profile {way.slug} {at_once}", self._size.loads[at_once])
        pid = server.group.root.pid
        with _running(server), sampled(pid, path):
            self._ask(server, way, at_once, prompts, self._size.tokens)
        return hottest(path.read_text(), pid)

    def _prompts(self, name: str, count: int) -> list[str]:
        """Held-out source behind a line of its own, without which caches would know some of it already."""
        return [f"# {name} {number}\n{text}" for number, text in enumerate(self._texts[:count])]

    def _ask(
        self, server: HttpServer, way: Way, at_once: int, prompts: Sequence[str], tokens: int, temperature: float = 1.0
    ) -> Load:
        """Raises LoadFailed, also where answers are not as long as they have to be."""
        bodies = [way.body(prompt, tokens, number, temperature) for number, prompt in enumerate(prompts)]
        load = ask(server.port, bodies, at_once)
        if any(answer.tokens != tokens for answer in load.answers):
            raise LoadFailed(f"{way.name}: not every answer has {tokens} tokens")
        return load


def claims(costs: Costs) -> list[Claim]:
    """Targets, each for the median of ratios within rounds."""
    made = []
    for at_once in costs.timings:
        load = f"{at_once} request{'s' * (at_once > 1)} at once"
        of_torch = TORCH_MANY if at_once > 1 else TORCH_ALONE
        for way, least in {**THROUGHPUT, TORCH: of_torch}.items():
            ratios = costs.faster(at_once, way)
            made.append(Claim.of_ratio(f"{load}: throughput of the {way} over {VLLM}", ratios, least, show=quartiles))
        text = f"{load}: time to first token of the {OURS} over {VLLM}"
        made.append(Claim.of_ratio(text, costs.later(at_once, OURS), most=FIRST_TOKEN, show=quartiles))
    own, base = costs.starts[TORCH], costs.starts[VLLM]
    ready, answered = _ratios(own.ready_s, base.ready_s), _ratios(own.answered_s, base.answered_s)
    for until, ratios in (("ready", ready), ("its first token", answered)):
        text = f"start of the {TORCH} until {until}, over {VLLM}"
        made.append(Claim.of_ratio(text, ratios, most=START, show=quartiles))
    return made


@contextmanager
def _running(server: HttpServer) -> Iterator[None]:
    """It runs, and stands still afterwards."""
    server.group.resume()
    try:
        httpx.get(f"{server.url}/health", timeout=30).raise_for_status()
        yield
    finally:
        server.group.pause()


def _step_seconds(server: HttpServer) -> dict[str, float]:
    """Of the engine's steps so far, by part; only the torch runner says it."""
    known = metrics(server.url).items()
    return {name[len(_STEP_PART) : -2]: value for name, value in known if name.startswith(_STEP_PART)}


def _ratios(own: Sequence[float], base: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(own, base, strict=True)]


def _per_token(before: Mapping[str, float], after: Mapping[str, float], tokens: int) -> dict[str, float]:
    """Milliseconds from seconds; what has begun since counts from zero."""
    return {name: 1000 * (value - before.get(name, 0.0)) / tokens for name, value in after.items()}
