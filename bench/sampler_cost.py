"""What each decoding method costs per step, beside `softmax` and `torch.multinomial` on the same rows.

`drafthouse bench samplers --part cost`. Through `SamplerStack`, with prompts, outputs and parameters as requests have
them; a step is `sample` and `accept`. Every timing has one of the baseline right before it, so that whatever else the
machine does hits both; the ratio is taken within such a pair.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.corpus import source_tokens
from models.embedded import TARGET, locate
from samplers.chain import Chain, resolve
from samplers.contract import SamplerError
from samplers.model_facts import ModelFacts
from samplers.stack import SamplerStack
from server.text.codec import TextCodec

FREE, SORT, DRAW, STATE = "sort-free", "sort-based", "draw", "stateful"
TARGETS = {FREE: 1.3, SORT: 2.0}
MIXED_TARGET = 1.5  # of a mixed batch over the sum of its types
PROMPT_TOKENS, OUTPUT_TOKENS = 512, 128
CONTINUED = 8  # tokens that may be generated, at least a measurement's steps
LEAD = 1.0  # how far the next token of the text lies above a row's peak
HIDDEN = 64  # of the made-up head
GROUP = 8  # choices of one request: arithmetic draws work on groups
TEMPERATURE = {"temperature": 0.8}


@dataclass(frozen=True)
class Kind:
    """One sampler to measure, after a temperature."""

    name: str
    group: str
    fields: Mapping[str, Any]


KINDS = (
    Kind("temperature", FREE, {}),
    Kind("min-p", FREE, {"min_p": 0.05}),
    Kind("top-a", FREE, {"top_a": 0.2}),
    Kind("epsilon", FREE, {"epsilon_cutoff": 6e-4}),
    Kind("eta", FREE, {"eta_cutoff": 2e-3}),
    Kind("top-nσ", FREE, {"top_n_sigma": 1.0}),
    Kind("XTC", FREE, {"xtc_probability": 0.5}),
    Kind("dynamic temperature", FREE, {"dynatemp_range": 0.4}),
    Kind("smoothing", FREE, {"smoothing_factor": 0.3}),
    Kind("top-k", SORT, {"top_k": 40}),
    Kind("top-p", SORT, {"top_p": 0.9}),
    Kind("typical", SORT, {"typical_p": 0.9}),
    Kind("tail-free", SORT, {"tfs": 0.95}),
    Kind("top-H", SORT, {"top_h": 0.4}),
    Kind("gumbel", DRAW, {"draw": "gumbel"}),
    Kind("arithmetic", DRAW, {"draw": "arithmetic"}),
    Kind("arithmetic, seeded order", DRAW, {"draw": "arithmetic", "vocab_order": "seeded"}),
    Kind("basis-aware", DRAW, {"draw": "basis_aware", "temperature": 1.0}),
    Kind("penalties", STATE, {"repetition_penalty": 1.1, "frequency_penalty": 0.5, "presence_penalty": 0.5}),
    Kind("DRY", STATE, {"dry_multiplier": 0.8}),
    Kind("no repeated 4-gram", STATE, {"no_repeat_ngram_size": 4}),
    Kind("mirostat", STATE, {"mirostat_tau": 5.0}),
    Kind("adaptive-p", STATE, {"adaptive_p": 0.5}),
    Kind("RPG", STATE, {"rpg": {"language": "python"}}),
    Kind("reuse cap", STATE, {"reuse_cap": 0.5}),
)


@dataclass(frozen=True)
class Size:
    """Rows, vocabulary and repetitions."""

    rows: int = 64
    vocab: int = 128_000
    rounds: int = 5
    steps: int = 2  # timed in a row, after one that is not


@dataclass
class Timing:
    """One case on one kind of rows, by round."""

    ms: list[float] = field(default_factory=list)  # per step
    ratios: list[float] = field(default_factory=list)  # to what it is compared with


@dataclass
class Cost:
    """Everything that was timed."""

    size: Size
    groups: dict[str, str] = field(default_factory=dict)  # case -> group
    timings: dict[str, dict[str, Timing]] = field(default_factory=dict)  # case -> kind of rows -> timing
    baseline: dict[str, Timing] = field(default_factory=dict)  # kind of rows -> softmax and multinomial
    mixed: dict[str, Timing] = field(default_factory=dict)  # ratios are to the sum of its types
    skipped: dict[str, str] = field(default_factory=dict)


def peaked(rows: int, vocab: int, seed: int) -> Tensor:
    """[rows, vocab] as a language model gives them: straight lines in the logarithm of the rank, with noise, tokens in
    any order. Exponents from 1.2 to 4 give entropies from 7 nats to a tenth."""
    generator = torch.Generator().manual_seed(seed)
    line = -torch.arange(1, vocab + 1).float().log()
    slopes = torch.linspace(1.2, 4.0, rows)
    logits = torch.empty(rows, vocab)
    for row, slope in zip(logits, slopes, strict=True):
        order = torch.randperm(vocab, generator=generator)
        row[order] = slope * line + 0.3 * torch.randn(vocab, generator=generator)
    return logits


def flat(rows: int, vocab: int, seed: int) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


ROWS: dict[str, Callable[[int, int, int], Tensor]] = {"peaked": peaked, "flat": flat}


def histories(codec: TextCodec, rows: int, vocab: int) -> list[list[int]]:
    """Stretches of held-out Python source, one per row: prompt, output, and what is generated while the clock runs."""
    source = source_tokens(codec.fast, held_out=True) % vocab  # a vocabulary smaller than the tokenizer's is a test's
    length = PROMPT_TOKENS + OUTPUT_TOKENS + CONTINUED
    return [source[start : start + length].tolist() for start in np.linspace(0, len(source) - length, rows).astype(int)]


def made_up_model(codec: TextCodec, vocab: int, seed: int) -> ModelFacts:
    """Pieces of the embedded tokenizer over and over, and a random head."""
    known = codec.pieces()
    pieces = None if known is None else [known[i % len(known)] for i in range(vocab)]
    head = torch.randn(vocab, HIDDEN, generator=torch.Generator().manual_seed(seed)) / HIDDEN**0.5
    return ModelFacts(pieces, codec.special_ids, head)


class Costing:
    """One stack for everything; a case is admitted anew each time it is measured."""

    def __init__(self, size: Size, kinds: Sequence[Kind] = KINDS) -> None:
        self._size = size
        codec = TextCodec.load(locate(TARGET))
        model = made_up_model(codec, size.vocab, seed=0)
        self._stack = SamplerStack(size.rows, size.vocab, torch.device("cpu"), model)
        self._histories = histories(codec, size.rows, size.vocab)
        self._logits = {name: make(size.rows, size.vocab, 2) for name, make in ROWS.items()}
        self._all = np.arange(size.rows)
        self.cost = Cost(size, baseline={name: Timing() for name in ROWS}, mixed={name: Timing() for name in ROWS})
        self._chains: dict[str, Chain] = {}
        self._fields: dict[str, Mapping[str, Any]] = {}
        for kind in kinds:
            fields = {**TEMPERATURE, **kind.fields}
            try:
                self._chains[kind.name] = resolve(fields, size.vocab, model)
            except SamplerError as error:
                self.cost.skipped[kind.name] = str(error).split("; known:")[0]
                continue
            self._fields[kind.name] = fields
            self.cost.groups[kind.name] = kind.group
            self.cost.timings[kind.name] = {name: Timing() for name in ROWS}
        self._model = model

    @property
    def measurements(self) -> int:
        return self._size.rounds * len(ROWS) * (len(self._chains) + 1)

    @torch.inference_mode()
    def measure(self, done: Callable[[], None]) -> Cost:
        order = random.Random(3)
        for round_ in range(-1, self._size.rounds):  # round -1 warms up
            for rows, logits in self._logits.items():
                names = list(self._chains)
                order.shuffle(names)
                for name in names if round_ >= 0 else names[:1]:
                    base, own = (
                        self._baseline(logits),
                        self._time(logits, self._all, [self._chains[name]] * len(logits)),
                    )
                    if round_ >= 0:
                        _book(self.cost.baseline[rows], base, 1.0)
                        _book(self.cost.timings[name][rows], own, own / base)
                        done()
                if round_ >= 0:
                    _book(self.cost.mixed[rows], *self._mixed(logits))
                    done()
        return self.cost

    def _baseline(self, logits: Tensor) -> float:
        """Seconds per step."""
        seconds = []
        for _ in range(1 + self._size.steps):
            began = time.perf_counter()
            torch.multinomial(torch.softmax(logits, -1), 1)
            seconds.append(time.perf_counter() - began)
        return statistics.fmean(seconds[1:])

    def _time(self, logits: Tensor, members: np.ndarray, chains: Sequence[Chain]) -> float:
        """Seconds per step of these slots, one chain and one row of logits each."""
        for slot in self._all.tolist():
            self._stack.free(slot)
        for slot, chain in zip(members.tolist(), chains, strict=True):
            self._stack.admit(
                slot,
                chain,
                seed=slot // GROUP,
                choice=slot % GROUP,
                prompt_ids=self._histories[slot][:PROMPT_TOKENS],
                output_ids=self._histories[slot][PROMPT_TOKENS:-CONTINUED],
                n=GROUP,
            )
        seconds = []
        for step in range(1 + self._size.steps):
            positions = np.full(len(members), OUTPUT_TOKENS + step)
            with self._continued(logits, members, step):
                began = time.perf_counter()
                sampled = self._stack.sample(logits, members, positions)
                failures = {**sampled.failures, **self._stack.accept(members, sampled.tokens)}
                seconds.append(time.perf_counter() - began)
            if failures:
                raise RuntimeError(next(iter(failures.values()))[1])
        return statistics.fmean(seconds[1:])

    @contextmanager
    def _continued(self, logits: Tensor, members: np.ndarray, step: int) -> Iterator[None]:
        """The source's next token is the most probable one, so that texts go on as texts and states have work."""
        following = torch.tensor([self._histories[slot][step - CONTINUED] for slot in members.tolist()])
        rows = torch.arange(len(members))
        saved = logits[rows, following]
        logits[rows, following] = logits.amax(1) + LEAD
        yield
        logits[rows, following] = saved

    def _mixed(self, logits: Tensor) -> tuple[float, float]:
        """(seconds per step of a batch in which every row has a sampler of its own, ratio to the sum of its types).

        Types take turns; rows of one type differ in temperature. The sum is over batches of one type's rows alone.
        """
        names = list(self._chains)
        chains = []
        for row in self._all.tolist():
            fields = dict(self._fields[names[row % len(names)]])
            if fields["temperature"] != 1.0:  # 1: the sampler allows no other
                fields["temperature"] = 0.6 + 0.005 * row
            chains.append(resolve(fields, self._size.vocab, self._model))
        whole = self._time(logits, self._all, chains)
        parts = 0.0
        for kind in range(min(len(names), len(chains))):
            members = self._all[kind :: len(names)]
            parts += self._time(logits[members].contiguous(), members, [chains[row] for row in members])
        return whole, whole / parts


def _book(timing: Timing, seconds: float, ratio: float) -> None:
    timing.ms.append(1000 * seconds)
    timing.ratios.append(ratio)
