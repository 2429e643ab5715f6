"""A part of the vocabulary for the draft model (FR-Spec): `drafthouse bench spec --part vocabulary`.

What the head costs and what drafts lose, by the number of tokens that it knows. They are ranked by the text that the
models were trained on, and tried on other text.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.claims import Claim
from bench.estimates import Array, Figure
from bench.progress import Begin, Done
from bench.sampler_runs import Sampling
from bench.spec_acceptance import by_prompt, ratio
from bench.spec_rig import Drafting, Pair, Rig
from bench.spec_texts import TASKS, chain_at, places, prompts
from engine.runners.torch.loader import load
from engine.settings import EngineSettings
from models.corpus import chat, source_text
from models.embedded import DRAFT, locate
from models.problems import problems
from server.rank import sizes
from server.text.codec import TextCodec
from spec_decode.theory.chains import block_length
from spec_decode.token_ranking import TokenRanking, count_tokens, needed_tokens
from spec_decode.tree_forms import chain

TEMPERATURE = 1.0
LENGTH = 4  # of chains
ROWS = (1, 16)  # of the head; requests that are drafted for
FULL_VOCABULARY = "full"
QUARTER = 4  # the part of which the paper says the most: 32k of 128k
WORK_CUT, KEPT = 0.75, 0.93  # of the head's work; of the tokens per pass (3.63 of 3.89 there)
_TRAINING_SEED = 1


@dataclass(frozen=True)
class Size:
    """How much is drawn and timed."""

    prompts: int = 64  # of each task
    places: int = 4  # of each prompt
    tokens: int = 96  # of the target's texts, at most
    turns: int = 8  # drafts at each place
    rounds: int = 9  # of timings
    calls: int = 20  # of a round
    training_problems: int = 20_000
    large: tuple[int, int] = (128_256, 512)  # rows and columns of a made-up head


FULL = Size()
QUICK = Size(prompts=12, places=2, tokens=48, turns=2, rounds=3, calls=5, training_problems=2000, large=(32_064, 256))


@dataclass
class Part:
    """So many tokens."""

    tokens: int
    covered: float  # share of the training text
    head: dict[int, list[float]] = field(default_factory=dict)  # rows -> seconds of head and softmax, by round
    draft: dict[int, list[float]] = field(default_factory=dict)  # requests -> seconds of drafting a chain, by round
    passes: dict[str, Array] = field(default_factory=dict)  # task -> tokens per pass, [prompts]


@dataclass
class Vocabulary:
    """Everything that was measured, the whole vocabulary last."""

    size: Size
    parts: list[Part] = field(default_factory=list)
    large: dict[int, list[float]] = field(default_factory=dict)  # rows of the made-up head -> seconds, by round
    claims: list[Claim] = field(default_factory=list)

    def kept(self, part: Part, task: str) -> Figure:
        """Tokens per pass over those with the whole vocabulary."""
        return ratio(part.passes[task], self.parts[-1].passes[task])

    def cut(self, part: Part, rows: int) -> list[float]:
        """Share of the time of head and softmax that is saved, by round."""
        return _cut(part.head[rows], self.parts[-1].head[rows])

    @property
    def quarter(self) -> Part:
        return next(part for part in self.parts if part.tokens * QUARTER == self.parts[-1].tokens)


class Measuring:
    """The embedded pair."""

    def __init__(self, sampling: Sampling, size: Size) -> None:
        self._sampling, self._size = sampling, size

    def measure(self, begin: Begin, done: Done) -> Vocabulary:
        """Raises Failed."""
        size = self._size
        ranking = training_ranking(self._sampling.codec, size.training_problems)
        whole = len(ranking.ids)
        found = Vocabulary(size, [Part(tokens, ranking.coverage(tokens)) for tokens in sizes(whole, ranking.kept)])
        begin(len(TASKS) * (size.prompts + len(found.parts)) + 2 * size.rounds)
        named = {_name(part, whole): part.tokens for part in found.parts[:-1]}
        pair = Pair(size.prompts * size.places, ranking, named)
        for task in TASKS:
            asked = prompts(self._sampling, task, size.prompts)
            at = places(self._sampling, asked, TEMPERATURE, size.places, size.tokens, done)
            rig = Rig(pair, at, TEMPERATURE, chain_at(self._sampling, TEMPERATURE))
            for part in found.parts:
                part.passes[task] = self._passes(rig, _name(part, whole))
                done()
        self._time_drafts(rig, found, whole, done)
        self._time_heads(found, ranking, done)
        found.claims = claims(found)
        return found

    def _passes(self, rig: Rig, vocabulary: str) -> Array:
        """[prompts] tokens per pass under block verification, expected."""
        drafting, total = Drafting.of(chain(LENGTH), vocabulary=vocabulary), np.ones(len(rig.places))
        for turn in range(self._size.turns):
            drafts = rig.draft(drafting, turn)
            lengths = [block_length(*drafts.chain(at)).item() for at in range(len(rig.places))]
            total += np.array(lengths) / self._size.turns
        return by_prompt(rig.places, total)

    def _time_drafts(self, rig: Rig, found: Vocabulary, whole: int, done: Done) -> None:
        """All parts in turn, each first as often as any other."""
        for part in found.parts:
            part.draft = {requests: [] for requests in ROWS}
        for round_ in range(self._size.rounds):
            shift = round_ % len(found.parts)
            for part in found.parts[shift:] + found.parts[:shift]:
                drafting = Drafting.of(chain(LENGTH), vocabulary=_name(part, whole))
                rig.admit(drafting)
                for requests in ROWS:
                    rig.propose(drafting, 0, requests)  # which computes the texts
                    part.draft[requests].append(
                        self._clock(partial(rig.propose, drafting, count=requests), turns=self._size.calls)
                    )
            done()

    @torch.inference_mode()
    def _time_heads(self, found: Vocabulary, ranking: TokenRanking, done: Done) -> None:
        """Of the draft model, and of a made-up one as large as those of the paper's models."""
        own = load(locate(DRAFT), EngineSettings()).facts.head
        assert own is not None
        heads = {part.tokens: ranking.subset(part.tokens).head(own) for part in found.parts}
        rows, columns = self._size.large
        large = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(own) / columns**0.5
        found.large = {tokens: [] for tokens in (rows // QUARTER, rows)}
        for part in found.parts:
            part.head = {count: [] for count in ROWS}
        for _ in range(self._size.rounds):
            for part in found.parts:
                for count in ROWS:
                    part.head[count].append(self._head(heads[part.tokens], count))
            for tokens, seconds in found.large.items():
                seconds.append(self._head(large[:tokens], 1))
            done()

    def _head(self, weights: Tensor, rows: int) -> float:
        """Seconds of the head and its softmax."""
        hidden = torch.ones(rows, weights.shape[1]).to(weights)
        return self._clock(lambda turn: F.linear(hidden, weights).softmax(1).amax().item(), turns=self._size.calls)

    @staticmethod
    def _clock(call: Callable[[int], object], turns: int) -> float:
        """Median seconds of calls, which wait for what they compute."""
        seconds = []
        for turn in range(turns):
            began = time.perf_counter()
            call(turn)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)


def training_ranking(codec: TextCodec, training_problems: int) -> TokenRanking:
    """By the text that the embedded models were trained on."""
    solved = itertools.islice(problems(_TRAINING_SEED, held_out=False), training_problems)
    texts = itertools.chain(source_text(held_out=False), map(chat, solved))
    counts = count_tokens(texts, codec.encode_plain, codec.vocabulary)
    kept = needed_tokens(codec.pieces(), codec.special_ids)
    return TokenRanking.of(counts, kept, codec.fingerprint)


def claims(found: Vocabulary) -> list[Claim]:
    """About a quarter of the vocabulary."""
    quarter = found.quarter
    rows, columns = found.size.large
    work = Claim.of_ratio(
        f"a quarter of {rows:,} tokens cuts the time of a head of width {columns} by 75 % (paper), share cut",
        _cut(found.large[rows // QUARTER], found.large[rows]),
        WORK_CUT,
    )
    kept = []
    for task in quarter.passes:
        figure = found.kept(quarter, task)
        text = f"{task}: drafts from a quarter of the vocabulary keep {100 * KEPT:g} % of the tokens per pass (paper)"
        kept.append(Claim.of_target(text, figure, KEPT, f"{figure.text(1, 100)} %"))
    return [work, *kept]


def _cut(part: list[float], whole: list[float]) -> list[float]:
    return [1 - own / all_of_it for own, all_of_it in zip(part, whole, strict=True)]


def _name(part: Part, whole: int) -> str:
    """Of a part of the draft's vocabulary."""
    return FULL_VOCABULARY if part.tokens == whole else str(part.tokens)
