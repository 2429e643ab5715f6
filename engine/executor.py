"""The contract between the engine's loop and the half that owns the model: a planned step in, drawn tokens out.

Rows are sequences, memory is pages. Everything here runs in the engine thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from engine.pages import Pages
from engine.request import TokenScore
from engine.scheduler import Work
from engine.sequence import Sequence
from samplers.model_facts import ModelFacts
from samplers.rng import Noise
from samplers.trace import TokenTrace
from spec_decode.acceptance import Verified
from spec_decode.contract import LoadedSource
from spec_decode.cost_model import Latency


class OutOfDeviceMemory(Exception):
    """A step needs more memory than the device has left. A smaller one may fit."""


@dataclass(frozen=True)
class Failure:
    """A row that could not be drawn from."""

    code: str
    message: str


@dataclass(slots=True)
class Drawn:
    """What one sequence drew in this step: one token, or accepted drafts and the token behind them."""

    sequence: Sequence
    tokens: list[int]
    logprobs: list[float]  # raw model distribution, one per token
    scores: list[TokenScore] = field(default_factory=list)  # one per token where they are asked for
    trace: TokenTrace | None = None
    failure: Failure | None = None  # nothing could be drawn behind the tokens
    verified: Verified | None = None  # what became of the work's draft; the KV of accepted nodes is in place


@dataclass(slots=True)
class Row:
    """What the model said after a branch of a program."""

    sequence: Sequence
    raw: Tensor  # [V] fp32
    shaped: Tensor  # [V] fp32, after the request's stages
    drawn: int  # the token its draw picked
    failure: Failure | None = None


@dataclass(slots=True)
class StepResult:
    """Everything a step drew and scored."""

    drawn: list[Drawn] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    prompt_scores: list[tuple[Sequence, int, list[TokenScore]]] = field(default_factory=list)  # (whose, from, scores)
    seconds: dict[str, float] = field(default_factory=dict)  # by part: build, forward, sample, verify


@dataclass(frozen=True)
class Drafting:
    """What speculation has to work with."""

    sources: Many[LoadedSource] = ()  # the preferred ones first
    verify: Mapping[int, Latency] = field(default_factory=dict)  # context -> seconds of one request's step by its rows
    forgetful: frozenset[str] = frozenset()  # stages and draws that remember nothing of the tokens
    max_depth: int = 0  # of any draft
    plain: Latency | None = None  # seconds of a step without drafts, by its requests


class Executor(Protocol):
    """Owns the model, the KV memory behind `pages` and the sampler state of every slot."""

    pages: Pages
    facts: ModelFacts
    vocab_size: int
    drafting: Drafting

    def admit(self, sequence: Sequence) -> None:
        """Write a sequence's sampling parameters into its slot. Raises if they cannot be used."""
        ...

    def tell(self, slot: int) -> Mapping[str, Any]:
        """What the samplers say about the choice that ends in this slot, for the response."""
        ...

    def free(self, slot: int) -> None:
        """The slot's sequence has ended; harmless after an `admit` that raised."""
        ...

    def execute(self, works: list[Work]) -> StepResult:
        """Run a step whose pages and slots are reserved; pending page copies come first.

        Raises OutOfDeviceMemory before any sampler state has changed, or whatever else goes wrong. The keys and values
        of these works' sequences are lost then.
        """
        ...

    def noise(self, sequences: Many[Sequence]) -> Noise:
        """The random numbers of these sequences at the positions they draw for next."""
        ...

    def mend(self, sequence: Sequence) -> set[int]:
        """Clear NaN and infinities out of a sequence's KV; returns the pages that held any."""
        ...

    def check_integrity(self, live: Many[Sequence]) -> None:
        """Raises `engine.pages.IntegrityError` when pages and the live sequences disagree."""
        ...
