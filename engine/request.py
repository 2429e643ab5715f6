"""What goes into the engine and what comes out, as plain data.

Knows nothing about torch, text or HTTP. A request is immutable and fully resolved: every default filled in,
every limit checked. Outputs are merged, never queued (`mailbox.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from samplers.chain import Chain
from samplers.trace import TokenTrace
from spec_decode.request import SpecRequest
from spec_decode.statistics import SpecStatistics


class FinishReason(StrEnum):
    """Why a choice ended. `ERROR` and `ABORT` never reach the wire under these names."""

    STOP = "stop"
    LENGTH = "length"
    ERROR = "error"
    ABORT = "abort"


class Watch(Protocol):
    """Follows one choice while it is drawn, and may end it. Used by the engine thread."""

    reason: str  # why it has ended the choice: `ended_early` of the choice's details

    def feed(self, score: TokenScore) -> bool:
        """What is known of the token that was just drawn. True: the choice ends with it."""
        ...


@dataclass(frozen=True)
class DecodeRequest:
    """One request for `n` choices of one prompt."""

    id: str
    prompt_ids: tuple[int, ...]  # at least one; every id inside the vocabulary
    chain: Chain  # resolved stages and draw, in executed order, and the program if there is one
    seed: int  # signed 64-bit
    max_tokens: int  # 0 only scores the prompt; prompt + max_tokens <= max_model_len
    n: int = 1
    first_choice: int = 0  # choice word of the first choice
    begun: tuple[int, ...] = ()  # fewer than `max_tokens` known tokens that begin every output: counted, never reported
    min_tokens: int = 0
    eos_token_ids: frozenset[int] = frozenset()  # end a choice; empty under `ignore_eos`
    stop_token_ids: frozenset[int] = frozenset()  # likewise, named by the request
    stops: tuple[bytes, ...] = ()  # stop strings, for programs: whoever reads a plain choice finds them in its text
    special_tokens_are_text: bool = False  # they are shown, so stop strings may hold them
    logprobs: int | None = None  # None: none; k: the token's and the top k of every generated token
    prompt_logprobs: int | None = None  # the same for prompt tokens from `scored_from` on (computed, cached or not)
    scored_from: int = 1  # index of a prompt token, at least 1
    processed_logprobs: bool = False  # report the final row instead of the raw one
    logprob_token_ids: tuple[int, ...] = ()  # report these ids as well, for every generated token
    compared: bool = False  # choices are, by their log-probabilities: they have to be known, also if `logprobs` is None
    watch: Callable[[], Watch] | None = None  # makes what follows each choice; `logprobs` must be asked for
    trace: int | None = None  # k: say what every stage did to each token's row, on about k candidates
    priority: int = 0  # lower runs first
    delivery_interval_s: float = 0.0  # outputs after the first may be held back and merged this long
    cache_salt: str = ""  # requests share cached prefixes only under one salt
    session: str = ""  # requests of one session are likely to share prefixes; "": nobody has said
    speculation: SpecRequest | None = None  # drafts for every choice; None: plain decoding
    tenant: str | None = None  # whose past outputs drafts may come from, and its outputs are added to; None: nobody's
    seeded: bool = True  # the tokens must follow from the seed, as far as rounding lets them; False: nobody gave one


@dataclass(frozen=True)
class TokenScore:
    """Log-probabilities at one position; natural logs, -inf possible."""

    logprob: float  # of the token itself
    rank: int  # 1 = most probable
    top: tuple[tuple[int, float], ...]  # (token id, logprob), descending, ties to the lower id
    extra: tuple[tuple[int, float], ...] = ()  # the ids of `logprob_token_ids`


@dataclass(frozen=True)
class Finish:
    """The end of one choice."""

    reason: FinishReason
    stop_token_id: int | None = None  # the EOS or stop id that ended it (it is the last of `token_ids`)
    error_code: str | None = None  # with ERROR: 'constraint_unsatisfiable', 'internal_error' or what a program says
    message: str = ""
    impossible: bool = False  # with ERROR: the request asks for something that does not exist
    details: Mapping[str, Any] = field(default_factory=dict)  # what a program or samplers say about the choice
    speculation: SpecStatistics | None = None  # of a choice that was drafted for, or might have been


@dataclass
class Delta:
    """New tokens of one choice since the last output."""

    choice: int  # 0-based within the request
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # raw, one per token; none where nobody asked and it costs
    scores: list[TokenScore] = field(default_factory=list)  # one per token when logprobs were asked for
    traces: list[TokenTrace | None] = field(default_factory=list)  # one per token when asked for; None: not known
    finish: Finish | None = None

    def absorb(self, later: Delta) -> None:
        """Append a later delta of the same choice."""
        self.token_ids += later.token_ids
        self.logprobs += later.logprobs
        self.scores += later.scores
        self.traces += later.traces
        self.finish = later.finish


@dataclass
class Output:
    """Everything new about one request since the consumer last looked."""

    deltas: dict[int, Delta] = field(default_factory=dict)  # by choice
    prompt_scores: list[TokenScore | None] | None = None  # per prompt token, None before `scored_from`
    cached_tokens: int = 0  # prompt tokens served from the prefix cache
    scored: bool = False  # a request with max_tokens 0 is complete
    absent: int = 0  # choices, the last ones, that a program did not find
    report: Mapping[str, Any] | None = None  # what a program says about the whole request, when it has ended

    def delta(self, choice: int) -> Delta:
        """The part that belongs to this choice."""
        delta = self.deltas.get(choice)
        if delta is None:
            delta = self.deltas[choice] = Delta(choice)
        return delta

    def absorb(self, later: Output) -> None:
        """Merge a later output into this one."""
        for choice, delta in later.deltas.items():
            if choice in self.deltas:
                self.deltas[choice].absorb(delta)
            else:
                self.deltas[choice] = delta
        if later.prompt_scores is not None:
            self.prompt_scores = later.prompt_scores
        self.cached_tokens = max(self.cached_tokens, later.cached_tokens)
        self.scored = self.scored or later.scored
        self.absent = max(self.absent, later.absent)
        self.report = later.report or self.report
