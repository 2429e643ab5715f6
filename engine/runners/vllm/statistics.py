"""What vLLM counts, in the runner's own names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.loggers import StatLoggerBase

from engine.runners.base import Stats

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats


class Counters:
    """Sums over the engines of one runner, and their latest gauges. Owned by the event loop."""

    def __init__(self) -> None:
        self.generated_tokens = self.prompt_tokens = self.cached_prompt_tokens = self.preemptions = self.steps = 0
        self._latest: dict[int, SchedulerStats] = {}  # by engine

    def logger(self, config: VllmConfig, engine_index: int = 0) -> StatLoggerBase:
        """What vLLM reports one engine's steps to."""
        return _Logger(self, engine_index)

    def count(self, engine: int, scheduler: SchedulerStats | None, iteration: IterationStats | None) -> None:
        if scheduler is not None:
            self._latest[engine] = scheduler
            self.cached_prompt_tokens += scheduler.prefix_cache_stats.hits
            self.steps += 1
        if iteration is not None:
            self.generated_tokens += iteration.num_generation_tokens
            self.prompt_tokens += iteration.num_prompt_tokens
            self.preemptions += iteration.num_preempted_reqs

    def stats(self, live: int, programs: int, pages: int, slots: int) -> Stats:
        """live: choices that have not ended: vLLM's gauges are those of its last step, which may have been with more.
        programs: requests that one decodes; they run, also when vLLM has none of their rows. pages, slots: over all
        engines."""
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
