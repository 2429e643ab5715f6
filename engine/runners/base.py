"""The contract of a runner: what the server may ask of whatever executes the model.

Knows nothing about HTTP. The step-level contract below it is `engine/executor.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from engine.request import DecodeRequest, Output
from samplers.model_facts import ModelFacts
from spec_decode.facts import SpecOffer
from spec_decode.statistics import SpecStatistics


class Capability(StrEnum):
    """What a request may need from a runner; a lacking one is a 400 that names a runner that has it."""

    LOGIT_ROWS = "logit_rows"
    FORK = "fork"
    TREES = "trees"
    INPUT_EMBEDDINGS = "input_embeddings"
    HIDDEN_STATES = "hidden_states"
    PROMPT_LOGPROBS = "prompt_logprobs"
    SAMPLER_TRACE = "sampler_trace"
    PROCESSED_LOGPROBS = "processed_logprobs"
    LOGPROB_TOKEN_IDS = "logprob_token_ids"
    DRAFTS = "drafts"


class RunnerError(Exception):
    """Base of what `submit` can raise."""


class Overloaded(RunnerError):
    """The queue is full, the runner is closing, or the engine has died. The server answers 503."""


class EngineFailed(RunnerError):
    """The engine stopped while the request was running. The server answers 503."""


class TooLarge(RunnerError):
    """The request could never fit into the KV memory, whatever else runs. The server answers 400."""


class Unsupported(RunnerError):
    """The runner cannot do what the request asks for, which only it could know. The server answers 400; `param` is the
    field that asks for it."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Health:
    """`ready` is true only when the next request would be served."""

    ready: bool
    reason: str = ""


@dataclass(frozen=True)
class Stats:
    """A consistent snapshot taken at the last step boundary; counters only grow."""

    requests_running: int = 0
    requests_waiting: int = 0
    queued_tokens: int = 0  # prompt tokens of sequences that wait
    kv_pages_total: int = 0
    kv_pages_in_use: int = 0  # referenced by live branches
    kv_pages_cached: int = 0  # unreferenced, kept for their prefix
    slots_total: int = 0
    slots_in_use: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    masked_rows: int = 0  # that ended choices because masks had left them no token
    step_seconds: dict[str, float] | None = None  # cumulative, by part: schedule, draft, forward, verify, ...
    broken_sources: frozenset[str] = frozenset()  # of drafts, that have failed and are switched off
    speculation: Mapping[tuple[str, str], SpecStatistics] = field(default_factory=dict)  # by (draft source, verifier)


class Runner(Protocol):
    """Executes requests. All methods are called from the event loop."""

    name: str  # 'torch', 'vllm'
    capabilities: frozenset[Capability]
    vocab_size: int  # prompts may hold, and choices will hold, ids below it
    max_model_len: int
    facts: ModelFacts  # what samplers may know about the model
    offer: SpecOffer  # how it can speculate

    def submit(self, request: DecodeRequest) -> AsyncIterator[Output]:
        """Start a request and yield its merged outputs until every choice has finished.

        Closing the iterator early aborts the request. Raises `Overloaded`, `TooLarge` or `Unsupported` before the first
        output.
        """
        ...

    def follows_seed(self, request: DecodeRequest) -> bool:
        """Whether the tokens of the request follow from its seed. Always so where it is `seeded`."""
        ...

    def abort(self, request_id: str, choice: int | None = None) -> None:
        """End a request, or one choice of it, at the next step boundary; unknown ids are ignored."""
        ...

    def health(self) -> Health: ...

    def stats(self) -> Stats: ...

    async def close(self, grace_s: float = 30.0) -> None:
        """Refuse new work, let running requests finish within the grace period, abort the rest, join."""
        ...
