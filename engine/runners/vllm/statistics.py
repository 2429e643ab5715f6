"""What vLLM counts, in the runner's own names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.loggers import StatLoggerBase

from engine.runners.base import Stats
from spec_decode.request import AUTO
from spec_decode.statistics import SpecStatistics

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.stats import IterationStats, RequestSpecDecodeMetrics, SchedulerStats
    from vllm.v1.spec_decode.metrics import SpecDecodingStats


def drafts_of(told: RequestSpecDecodeMetrics) -> SpecStatistics:
    """What vLLM tells of a choice that has ended: its steps with drafts, tokens behind the end included."""
    done = SpecStatistics(plain_counted=False)
    for drafted, accepted in zip(told.per_step_drafted, told.per_step_accepted, strict=True):
        done.steps += 1
        done.drafted += drafted
        done.accepted += accepted
        done.emitted += accepted + 1
        done.reached.update(range(1, drafted + 1))
        done.passed.update(range(1, accepted + 1))
        done.sizes[drafted] += 1
    return done


class Counters:
    """Sums over the engines of one runner, and their latest gauges. Owned by the event loop."""

    def __init__(self) -> None:
        self.generated_tokens = self.prompt_tokens = self.cached_prompt_tokens = self.preemptions = self.steps = 0
        self._latest: dict[int, SchedulerStats] = {}  # by engine
        self._drafts = SpecStatistics()  # without steps that have none

    def logger(self, config: VllmConfig, engine_index: int = 0) -> StatLoggerBase:
        """What vLLM reports one engine's steps to."""
        return _Logger(self, engine_index)

    def count(self, engine: int, scheduler: SchedulerStats | None, iteration: IterationStats | None) -> None:
        if scheduler is not None:
            self._latest[engine] = scheduler
            self.cached_prompt_tokens += scheduler.prefix_cache_stats.hits
            self.steps += 1
            if scheduler.spec_decoding_stats is not None:
                self._count_drafts(scheduler.spec_decoding_stats)
        if iteration is not None:
            self.generated_tokens += iteration.num_generation_tokens
            self.prompt_tokens += iteration.num_prompt_tokens
            self.preemptions += iteration.num_preempted_reqs
            # one of them for every choice that has come to tokens
            self._drafts.steps += len(iteration.time_to_first_tokens_iter) + len(iteration.inter_token_latencies_iter)

    def speculation(self, draft: str) -> dict[tuple[str, str], SpecStatistics]:
        """draft: the source's name. vLLM adds up what its rules have done."""
        done = self._drafts.copy()
        done.emitted = self.generated_tokens
        done.sizes[0] = max(0, done.steps - done.sizes.total())
        return {(draft, AUTO): done}

    def _count_drafts(self, told: SpecDecodingStats) -> None:
        """Of one step. A draft of length k has tokens at positions 1 to k."""
        drafts, reached = self._drafts, [*told.num_draft_tokens_per_pos, 0]
        drafts.drafted += told.num_draft_tokens
        drafts.accepted += told.num_accepted_tokens
        for position, accepted in enumerate(told.num_accepted_tokens_per_pos, 1):
            drafts.reached[position] += reached[position - 1]
            drafts.passed[position] += accepted
            drafts.sizes[position] += reached[position - 1] - reached[position]

    def stats(self, live: int, programs: int, pages: int, slots: int) -> Stats:
        """live: choices that have not ended: vLLM's gauges are those of its last step, which may have been with more.
        programs: requests that one decodes; they run, also when vLLM has none of their rows. pages, slots: over all
        engines. What only the runner knows is left out."""
        latest = self._latest.values()
        running = min(live, sum(one.num_running_reqs for one in latest))
        used = sum(one.kv_cache_usage for one in latest) / max(1, len(latest)) if live + programs else 0.0
        return Stats(
            requests_running=running + programs,
            requests_waiting=live - running,
            kv_pages_total=pages,
            kv_pages_in_use=round(used * pages),
            slots_total=slots,
            slots_in_use=running + programs,
            generated_tokens=self.generated_tokens,
            prompt_tokens=self.prompt_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens,
            preemptions=self.preemptions,
            steps=self.steps,
        )


class _Logger(StatLoggerBase):
    def __init__(self, counters: Counters, engine: int) -> None:
        self._counters, self._engine = counters, engine

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        self._counters.count(self._engine, scheduler_stats, iteration_stats)

    def log_engine_initialized(self) -> None:
        """The server says so itself."""
