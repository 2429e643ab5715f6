"""The torch runner: a loaded model, its executor and the engine thread behind the `Runner` contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import torch

from engine.admission import QueueLimits
from engine.engine import Engine
from engine.request import DecodeRequest, Output
from engine.runners.base import Capability, Health, Stats
from engine.runners.torch.draft_model import DraftModel, load_beside
from engine.runners.torch.draft_sources import draft_sources
from engine.runners.torch.executor import TorchExecutor
from engine.runners.torch.loader import LoadedModel, Sizes, load, sizes
from engine.scheduler import Scheduler
from engine.settings import EngineSettings
from engine.thread import ModelThread
from samplers.model_facts import NO_FACTS, ModelFacts
from spec_decode.facts import SpecOffer
from spec_decode.token_ranking import TokenRanking

# what a request can reach today
_CAPABILITIES = frozenset(
    {
        Capability.LOGIT_ROWS,
        Capability.FORK,
        Capability.TREES,
        Capability.PROMPT_LOGPROBS,
        Capability.SAMPLER_TRACE,
        Capability.PROCESSED_LOGPROBS,
        Capability.LOGPROB_TOKEN_IDS,
        Capability.DRAFTS,
    }
)


class TorchRunner:
    """Serves one model in this process."""

    name = "torch"

    def __init__(
        self,
        load_model: Callable[[], LoadedModel],
        settings: EngineSettings,
        model_id: str = "model",
        on_fatal: Callable[[BaseException], None] | None = None,
        load_draft: Callable[[], LoadedModel] | None = None,
        ranking: TokenRanking | None = None,
    ) -> None:
        """Load, check and start. Raises UnsupportedModelError, SettingsError or OSError.

        Everything that computes happens in the engine thread, loading included: a thread that has once run a
        parallel region keeps its OpenMP workers, and two sets of them on the same cores slow each other down.
        """
        settings.check()
        thread = ModelThread()

        def build() -> tuple[LoadedModel, Sizes, TorchExecutor]:
            if settings.threads is not None:
                torch.set_num_threads(settings.threads)
            with torch.inference_mode():
                loaded = load_model()
                beside = load_draft() if load_draft is not None and settings.spec_max_len else None
                resolved = sizes(loaded, settings, beside)
                executor = TorchExecutor(loaded, resolved, settings.attention, settings.replay)
                if settings.spec_max_len:
                    draft = None if beside is None else DraftModel(beside, settings, loaded, resolved, ranking)
                    executor.use_drafts(
                        draft_sources(draft, settings.spec_past_outputs_s),
                        settings.spec_max_len,
                        resolved.max_batch_tokens,
                    )
                return loaded, resolved, executor

        try:
            loaded, resolved, self.executor = thread.submit(build).result()
        except BaseException:
            thread.close()
            raise
        self.capabilities = _CAPABILITIES | ({Capability.INPUT_EMBEDDINGS} if loaded.mixtures else set())
        self.vocab_size = loaded.vocab_size
        self.facts = loaded.facts
        self._draft_vocabularies = frozenset(settings.draft_vocab)
        self.max_model_len = loaded.max_model_len
        replayed = ", replayed" if self.executor.model.forward.program is not None else ""
        self.description = f"{loaded.device}, {str(loaded.dtype).removeprefix('torch.')}{replayed}"
        self.eos_token_ids = loaded.eos_token_ids
        self.generation_defaults = loaded.generation_defaults
        namespace = f"{model_id}|{loaded.dtype}".encode()
        self.scheduler = Scheduler(
            self.executor.pages, resolved.max_seqs, resolved.max_batch_tokens, namespace, settings.chunk_tokens
        )
        limits = QueueLimits(settings.max_queued_requests, resolved.max_queued_tokens)
        self.engine = Engine(self.executor, self.scheduler, limits, thread, on_fatal)

    @classmethod
    def from_pretrained(
        cls,
        model_id: str,
        settings: EngineSettings,
        on_fatal: Callable[[BaseException], None] | None = None,
        tokens: ModelFacts = NO_FACTS,
        draft: str | None = None,
        ranking: TokenRanking | None = None,
    ) -> TorchRunner:
        """From a folder or hub id. `tokens` is what the tokenizer knows; without it all rows of the head are tokens.

        draft: folder or hub id of a model with the same tokens, which drafts for this one; ranking: which of them it
        needs most, for the parts of `settings.draft_vocab`. Raises UnsupportedModelError, SettingsError or OSError.
        """

        return cls(
            lambda: load(model_id, settings, tokens),
            settings,
            model_id,
            on_fatal,
            None if draft is None else lambda: load_beside(draft, settings),
            ranking,
        )

    @property
    def offer(self) -> SpecOffer:
        """How it can speculate, without sources that have failed."""
        drafting, broken = self.executor.drafting, self.stats().broken_sources
        sources = tuple(one.source for one in drafting.sources if one.source.name not in broken)
        return SpecOffer(sources, self._draft_vocabularies, drafting.max_depth)

    def submit(self, request: DecodeRequest) -> AsyncIterator[Output]:
        return self.engine.stream(request)

    def follows_seed(self, request: DecodeRequest) -> bool:
        return True

    def abort(self, request_id: str, choice: int | None = None) -> None:
        self.engine.abort(request_id, choice)

    def health(self) -> Health:
        return self.engine.health()

    def stats(self) -> Stats:
        return self.engine.stats()

    async def close(self, grace_s: float = 30.0) -> None:
        await asyncio.to_thread(self.engine.close, grace_s)
