"""Prometheus metrics of one application, in a registry of its own.

Engine figures are read from the runners when somebody scrapes; only HTTP and latency are counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.runners.base import Runner, Stats
from server.speculation_metrics import families

TTFT_BUCKETS_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96)
TOKEN_BUCKETS_S = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048)

GAUGES = {
    "requests_running": "Requests that hold a slot",
    "requests_waiting": "Requests in the queue",
    "queued_tokens": "Prompt tokens in the queue",
    "kv_pages_total": "KV pages of the pool",
    "kv_pages_in_use": "KV pages referenced by live branches",
    "kv_pages_cached": "Unreferenced KV pages kept for their prefix",
    "slots_total": "Slots for sequences",
    "slots_in_use": "Slots taken",
}
COUNTERS = {
    "generated_tokens": "Tokens generated",
    "prompt_tokens": "Prompt tokens of admitted requests",
    "cached_prompt_tokens": "Prompt tokens served from the prefix cache",
    "preemptions": "Sequences that had to give up their pages",
    "steps": "Engine steps",
    "masked_rows": "Choices that ended because masks had left them no token",
}


class RunnerCollector(Collector):
    """Runner statistics under stable names; labelled by model only where several models are served."""

    def __init__(self, runners: Mapping[str, Runner]) -> None:
        self._runners = runners
        self._labels = ["model"] if len(runners) > 1 else []

    def collect(self) -> Iterable[Metric]:
        snapshots: dict[str, Stats] = {name: runner.stats() for name, runner in self._runners.items()}
        for field, text in (GAUGES | COUNTERS).items():
            kind = GaugeMetricFamily if field in GAUGES else CounterMetricFamily
            family = kind(f"drafthouse_{field}", text, labels=self._labels)
            for name, stats in snapshots.items():
                family.add_metric(self._model(name), getattr(stats, field))
            yield family
        # a gauge in form because its stable name has no `_total`; it only grows
        seconds = GaugeMetricFamily(
            "drafthouse_step_seconds", "Seconds spent in engine steps, by part", labels=[*self._labels, "part"]
        )
        for name, stats in snapshots.items():
            for part, value in (stats.step_seconds or {}).items():
                seconds.add_metric([*self._model(name), part], value)
        yield seconds
        labels = {name: self._model(name) for name in snapshots}
        yield from families({name: stats.speculation for name, stats in snapshots.items()}, labels)

    def _model(self, name: str) -> list[str]:
        """Values of the labels that name a model."""
        return [name] if self._labels else []


class Metrics:
    """What the routes count."""

    def __init__(self, runners: Mapping[str, Runner], votes_open: Callable[[], int] = lambda: 0) -> None:
        """votes_open: how many stored votes verdicts may change."""
        self.registry = CollectorRegistry()
        self.registry.register(RunnerCollector(runners))
        labels = ["model"] if len(runners) > 1 else []
        self._labelled = bool(labels)
        self._ttft = Histogram(
            "drafthouse_time_to_first_token_seconds", "From the request's arrival to its first token", labels,
            registry=self.registry, buckets=TTFT_BUCKETS_S,
        )  # fmt: skip
        self._gap = Histogram(
            "drafthouse_inter_token_seconds", "Between consecutive tokens of one choice", labels,
            registry=self.registry, buckets=TOKEN_BUCKETS_S,
        )  # fmt: skip
        self.http = Counter("drafthouse_http_requests", "HTTP responses", ["route", "status"], registry=self.registry)

        self.spec_fallbacks = Counter(
            "drafthouse_spec_fallbacks", "Requests decoded plainly though they left it open", ["reason"],
            registry=self.registry,
        )  # fmt: skip

        self._votes = Counter("drafthouse_votes", "Votes held", ["rule"], registry=self.registry)
        self._vote_samples = Counter(
            "drafthouse_vote_samples", "Samples of votes, by what became of them", ["rule", "fate"],
            registry=self.registry,
        )  # fmt: skip

        self.verdicts = Counter(
            "drafthouse_verdicts", "Verdicts on stored votes", ["verdict", "target"], registry=self.registry
        )
        Gauge("drafthouse_votes_open", "Stored votes that verdicts may change", registry=self.registry).set_function(
            votes_open
        )

    def vote(self, rule: str, used: int, discarded: int) -> None:
        self._votes.labels(rule).inc()
        self._vote_samples.labels(rule, "used").inc(used)
        self._vote_samples.labels(rule, "discarded").inc(discarded)

    def first_token(self, model: str, seconds: float) -> None:
        (self._ttft.labels(model) if self._labelled else self._ttft).observe(seconds)

    def tokens_after(self, model: str, seconds: float, count: int) -> None:
        """`count` tokens arrived together, `seconds` after those before them."""
        histogram = self._gap.labels(model) if self._labelled else self._gap
        for _ in range(count):
            histogram.observe(seconds / count)

    def render(self) -> bytes:
        return generate_latest(self.registry)
