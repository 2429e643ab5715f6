"""The vLLM runner: vLLM's engine, in processes of its own, behind the `Runner` contract.

Every choice is a request to vLLM: it has its own parameters and ends on its own; what the choices of a prompt share is
the prefix cache. So is every row that a program asks for. Lives in the event loop. Importing this module imports vLLM.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import vllm
from transformers import GenerationConfig
from vllm.v1.engine.exceptions import EngineDeadError

from engine.admission import Admission, QueueLimits
from engine.generation import eos_token_ids, generation_defaults
from engine.program_run import ProgramRun
from engine.request import DecodeRequest, Output
from engine.runners.base import Capability, EngineFailed, Health, Overloaded, Stats, TooLarge, Unsupported
from engine.runners.vllm.active import ActiveRequest
from engine.runners.vllm.active_program import ActiveProgram
from engine.runners.vllm.arguments import engine_arguments
from engine.runners.vllm.failures import DEAD
from engine.runners.vllm.places import reports_address
from engine.runners.vllm.ranks import Ranks
from engine.runners.vllm.reports import ReportInbox
from engine.runners.vllm.row_inbox import RowInbox
from engine.runners.vllm.sampling import is_native, may_filter, needs_chain
from engine.runners.vllm.speculation import engine_wide
from engine.runners.vllm.start import configured, has_processor, setup_for, spoils_sampling, started, vocabulary
from engine.runners.vllm.statistics import Counters
from engine.settings import EngineSettings, SettingsError
from samplers.model_facts import NO_FACTS, ModelFacts
from spec_decode.facts import SpecOffer

_CHECK_S = 1.0  # between looks at whether the engine lives
_POLL_S = 0.02
_TOLD_BY_SAMPLERS = (Capability.PROCESSED_LOGPROBS, Capability.LOGPROB_TOKEN_IDS, Capability.SAMPLER_TRACE)
_NO_CHAINS = "vLLM's first generation of processors has no place for samplers while it speculates"


class VllmRunner:
    """Serves one model in vLLM's engine processes."""

    name = "vllm"

    def __init__(
        self,
        model: str,
        settings: EngineSettings,
        arguments: Mapping[str, Any],
        native: bool = True,
        filter_rows: bool = True,
        on_fatal: Callable[[BaseException], None] | None = None,
        tokens: ModelFacts = NO_FACTS,
    ) -> None:
        """Load a folder or hub id and start the engine, which takes about a minute.

        arguments: of vLLM's engine, by its names; native: vLLM may draw what needs no sampler of ours; filter_rows:
        if so, it may draw from rows that samplers of ours leave, while it speculates; tokens: what the tokenizer knows.
        Raises SettingsError, or what vLLM raises for a model or arguments that it cannot use.
        """
        config = configured(engine_arguments(model, settings, arguments))
        self._speculation = engine_wide(config, settings.spec_max_len)
        longest = 0 if self._speculation is None else settings.spec_max_len
        self.offer = SpecOffer(max_depth=longest, trees=False, engine_wide=self._speculation)
        self._draws_chains, self._spoils_sampling = has_processor(config), spoils_sampling(config)
        self._filters = native and filter_rows and self._speculation is not None and self._draws_chains
        self.max_model_len = config.model_config.max_model_len
        try:
            generation = GenerationConfig.from_pretrained(model)
        except OSError:  # the model has no such file
            generation = GenerationConfig()
        self.eos_token_ids = eos_token_ids(generation, config.model_config.hf_text_config)
        self.generation_defaults = generation_defaults(generation)
        self.vocab_size = vocabulary(config, tokens)
        whole = self.vocab_size == config.model_config.get_vocab_size()
        self._native = native and whole  # else vLLM might draw ids that are no tokens
        if not (self._native or self._draws_chains):
            why = "'vllm_native' is false" if whole else "the model has ids that are no tokens"
            raise SettingsError(f"setting 'vllm_args': {_NO_CHAINS}, and {why}, so nobody could draw")
        self._folder = tempfile.TemporaryDirectory(prefix="drafthouse-")
        elsewhere = reports_address(config)
        local = str(Path(self._folder.name) / "reports")
        self._reports = ReportInbox(elsewhere if elsewhere is not None and self._draws_chains else local)
        self._counters = Counters()
        parallel = config.parallel_config
        ranks = parallel.data_parallel_size_local if parallel.local_engines_only else parallel.data_parallel_size
        self._slots = config.scheduler_config.max_num_seqs * ranks
        # rows are written by samplers, into memory of this machine
        reachable = elsewhere is None and self._draws_chains
        self._rows = RowInbox(self._slots, self.vocab_size) if reachable else None
        programs = () if self._rows is None else (Capability.LOGIT_ROWS, Capability.FORK)
        drafts = () if self._speculation is None else (Capability.DRAFTS,)
        told = _TOLD_BY_SAMPLERS if self._draws_chains else ()
        self.capabilities = frozenset({Capability.PROMPT_LOGPROBS, *programs, *drafts, *told})
        setup = setup_for(config, tokens, self._reports.address, self._rows)
        self.facts = setup.facts
        self.llm = started(config, setup, self._counters)
        processor = "second" if config.use_v2_model_runner else "first"
        dtype = str(config.model_config.dtype).removeprefix("torch.")
        self.description = f"vLLM {vllm.__version__}, {dtype}, {processor} generation of processors"
        self._pages = config.cache_config.num_gpu_blocks or 0
        self._ranks = Ranks(ranks, config.cache_config.block_size, self._pages)
        queued = settings.max_queued_tokens
        if queued is None:
            queued = 64 * config.scheduler_config.max_num_batched_tokens
        self._admission = Admission(QueueLimits(settings.max_queued_requests, queued), self._slots)
        self._active: dict[str, ActiveRequest | ActiveProgram] = {}  # by id
        self._thread = ThreadPoolExecutor(1, "programs")
        self._on_fatal = on_fatal
        self._guard: asyncio.Task[None] | None = None
        self._closing = self._closed = False

    async def submit(self, request: DecodeRequest) -> AsyncIterator[Output]:
        health = self.health()
        if not health.ready:
            raise Overloaded(health.reason)
        self._guard = self._guard or asyncio.ensure_future(self._watch_engine())
        if request.max_tokens == 0 and len(request.prompt_ids) == self.max_model_len:
            raise TooLarge(f"vLLM scores prompts below its context of {self.max_model_len} tokens only")
        self._check(request)
        self._admission.enter(request)
        rank = self._ranks.enter(request)
        active: ActiveRequest | ActiveProgram | None = None
        try:
            active = self._active[request.id] = self._started(request, rank)
            while (output := await active.mailbox.get()) is not None:
                self._admission.answered(request.id)
                yield output
        finally:
            self._admission.leave(request.id)
            self._ranks.leave(request, rank)
            if active is not None:
                del self._active[request.id]
                active.close()

    def follows_seed(self, request: DecodeRequest) -> bool:
        return request.chain.greedy or not (self._is_native(request) or self._is_filtered(request))

    def abort(self, request_id: str, choice: int | None = None) -> None:
        if request_id in self._active:
            self._active[request_id].abort(choice)

    def health(self) -> Health:
        if self._closing:
            return Health(False, "shutting down")
        if self.llm.errored:
            self._mourn()
            return Health(False, DEAD)
        return Health(True)

    def stats(self) -> Stats:
        """Its requests are choices, which is what vLLM queues, and those that programs decode."""
        active = self._active.values()
        choices = sum(one.unfinished for one in active if isinstance(one, ActiveRequest))
        programs = sum(one.unfinished for one in active if isinstance(one, ActiveProgram))
        found = self._counters.stats(choices, programs, self._pages, self._slots)
        drafts = {} if self._speculation is None else self._counters.speculation(self._speculation.source.name)
        return replace(found, masked_rows=self._reports.masked_rows, speculation=drafts)

    async def close(self, grace_s: float = 30.0) -> None:
        self._closing = True
        deadline = time.monotonic() + grace_s
        while self._active and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
        self._fail_all(Overloaded("shutting down"))
        if self._closed:
            return
        self._closed = True
        if self._guard is not None:
            self._guard.cancel()
        await asyncio.to_thread(self.llm.shutdown)
        self._thread.shutdown(wait=False)
        self._reports.close()
        if self._rows is not None:
            self._rows.close()
        self._folder.cleanup()

    def _started(self, request: DecodeRequest, rank: int) -> ActiveRequest | ActiveProgram:
        if request.chain.program is None:
            native, filtered = self._is_native(request), self._is_filtered(request)
            return ActiveRequest(request, native, self.llm, self._reports, rank, filtered)
        assert self._rows is not None
        run = ProgramRun(request, self.facts, self.vocab_size)
        return ActiveProgram(request, run, self.llm, self._reports, self._rows, self._thread, rank)

    def _is_native(self, request: DecodeRequest) -> bool:
        return (self._native or request.max_tokens == 0) and is_native(request)

    def _is_filtered(self, request: DecodeRequest) -> bool:
        return self._filters and not self._is_native(request) and may_filter(request)

    def _check(self, request: DecodeRequest) -> None:
        """Raises Unsupported for what nobody can draw while vLLM speculates."""
        if not self._draws_chains and (field := needs_chain(request)) is not None:
            message = f"'{field}': {_NO_CHAINS}. It draws itself without a seed, min_tokens, and samplers other than"
            raise Unsupported(f"{message} temperature, top_k and top_p; the torch runner draws everything", field)
        if self._spoils_sampling and request.max_tokens and not request.chain.greedy:
            message = "vLLM's speculation on CPUs draws with other temperatures than it is told"
            raise Unsupported(f"'temperature': {message}, so it has to be 0; the torch runner takes any", "temperature")

    async def _watch_engine(self) -> None:
        """vLLM says that its engine has died only to those who wait for it; a supervisor should know anyway."""
        while not self.llm.errored:
            await asyncio.sleep(_CHECK_S)
        self._mourn()

    def _mourn(self) -> None:
        """The engine has died; whoever notices says so."""
        self._fail_all(EngineFailed(DEAD))
        on_fatal, self._on_fatal = self._on_fatal, None
        if on_fatal is not None and not self._closing:
            on_fatal(EngineDeadError())

    def _fail_all(self, error: Exception) -> None:
        for active in self._active.values():
            active.fail(error)
