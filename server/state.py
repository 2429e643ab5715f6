"""What the application serves: models, keys, limits. Built once at start and handed to every route."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from engine.runners.base import Runner
from server.errors import ApiError
from server.metrics import Metrics
from server.text.codec import TextCodec
from server.text.covers import CoverFinder
from server.votes.store import VoteStore
from voting.answers.math_pool import MathPool

if TYPE_CHECKING:
    from server.votes.executor import CodeExecutor
    from server.votes.scoring.endpoint import RewardEndpoint

VERSION = "0.1.0"
P = ParamSpec("P")
T = TypeVar("T")
VOTE_THREADS = 4
END_OF_REASONING = ("</think>",)  # as models write it


@dataclass
class ServedModel:
    """One model under the id clients ask for."""

    id: str
    runner: Runner
    tokenizer: TextCodec
    root: str = ""  # the folder or hub id it was loaded from; reported by /v1/models
    created: int = field(default_factory=lambda: int(time.time()))
    generation_defaults: Mapping[str, Any] = field(default_factory=dict)  # the model's generation_config.json
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name -> request fields

    @cached_property
    def eos_token_ids(self) -> frozenset[int]:
        """Every token that ends a text of this model."""
        configured = self.generation_defaults.get("eos_token_id")
        ids = configured if isinstance(configured, list) else [configured]
        return frozenset(i for i in (*ids, self.tokenizer.eos_token_id) if i is not None)

    @cached_property
    def end_of_reasoning(self) -> str | None:
        """What closes the part of an answer that is not the answer. None: this model has no such marker."""
        known = self.tokenizer.fast
        return next((one for one in END_OF_REASONING if known.token_to_id(one) is not None), None)

    @cached_property
    def covers(self) -> CoverFinder:
        """The ways to write the end of a prompt. Takes a moment to build, for a large vocabulary a second."""
        codec, pieces = self.tokenizer, self.tokenizer.pieces()
        return CoverFinder(codec.fast, pieces[: self.runner.vocab_size], codec.special_ids)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with what could change the tokens of a seeded request."""
        facts = f"{VERSION}/{self.runner.name}/{self.root or self.id}/{self.runner.vocab_size}"
        return "fp_" + hashlib.sha256(facts.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Limits:
    """What one request may cost and do."""

    body_bytes: int = 16 * 2**20
    choices_per_request: int = 4096  # prompts times n (or best_of)
    echoed_tokens: int = 2**20  # prompt tokens times choices that are listed with their log-probabilities
    traced_tokens: int = 1024  # prompts times choices times tokens with a trace of their sampling, some kB each
    max_k: int = 512  # samples of one vote
    prompts_in_flight: int = 32  # of one request; the others wait in the server
    allow_chat_template: bool = False
    past_outputs: bool = False  # drafts may come from earlier outputs of the same key
    require_lossless: bool = False  # no verifier may change the law of the output


@dataclass
class ServerState:
    """Everything routes need. `draining` is set by the launcher when the process is told to stop."""

    models: list[ServedModel]  # the first is the default
    api_keys: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    cors_origins: tuple[str, ...] = ()
    scorers: Mapping[str, RewardEndpoint] = field(default_factory=dict)  # of votes, by name
    code_executor: CodeExecutor | None = None  # of votes among programs
    votes: VoteStore = field(default_factory=VoteStore)
    draining: bool = False
    in_flight: int = 0  # requests between their first byte and the end of their response
    logged_names: set[str] = field(default_factory=set)  # unknown request fields already logged
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("at least one model must be served")
        ids = [model.id for model in self.models]
        if len(set(ids)) < len(ids):
            raise ValueError(f"two served models share an id: {', '.join(ids)}")
        self.metrics = Metrics({model.id: model.runner for model in self.models}, lambda: self.votes.open)

    @cached_property
    def math_pool(self) -> MathPool:
        """Processes that compare formulas; none runs before somebody asks."""
        return MathPool()

    async def in_vote_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a vote's work, in threads of their own: votes that wait for math-verify hold up nobody else."""
        run = partial(work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._vote_threads, run)

    @cached_property
    def _vote_threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(VOTE_THREADS, thread_name_prefix="vote")

    async def close(self, grace_s: float = 0.5) -> None:
        """End what runs beside the event loop. Nobody may ask for anything afterwards."""
        for model in self.models:
            await model.runner.close(grace_s)
        for scorer in self.scorers.values():
            await scorer.close()
        if self.code_executor is not None:
            await self.code_executor.close()
        if "math_pool" in self.__dict__:
            await asyncio.to_thread(self.math_pool.close)
        self._vote_threads.shutdown(wait=False, cancel_futures=True)

    def find(self, name: str) -> tuple[ServedModel, str | None]:
        """The model of `name` or `name@preset`, and the preset's name. Raises a 404."""
        by_id = {model.id: model for model in self.models}
        if name in by_id:
            return by_id[name], None
        base, at, preset = name.rpartition("@")
        if at and base in by_id and preset in by_id[base].presets:
            return by_id[base], preset
        known = ", ".join(ids for model in self.models for ids in listed_ids(model))
        raise ApiError(404, f"the model '{name:.200}' does not exist; served: {known}", "model", "model_not_found")

    def ready(self) -> tuple[bool, str]:
        """Whether the next request would be served, and if not, why."""
        if self.draining:
            return False, "shutting down"
        for model in self.models:
            health = model.runner.health()
            if not health.ready:
                return False, f"{model.id}: {health.reason}"
        return True, ""


def listed_ids(model: ServedModel) -> list[str]:
    """The names a model can be asked for by: its own first."""
    return [model.id, *(f"{model.id}@{preset}" for preset in model.presets)]
