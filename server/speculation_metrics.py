"""What speculation has done, as Prometheus sees it: by source of drafts and by verifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from spec_decode.statistics import SpecStatistics

COUNTERS = {
    "steps": "Steps of sequences that may speculate, those without drafts included",
    "drafted": "Tokens drafted",
    "accepted": "Drafted tokens accepted",
    "emitted": "Tokens that these steps have put out",
    "repaired": "Residuals that rounding has left without mass",
}
PER_POSITION = {
    "reached": "Steps that had a draft at this position",
    "passed": "Steps that accepted a draft at this position",
}
LENGTH_BUCKETS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
Done = Mapping[tuple[str, str], SpecStatistics]  # (source, verifier) -> since the start


def families(snapshots: Mapping[str, Done], model_labels: Mapping[str, Sequence[str]]) -> Iterator[Metric]:
    """snapshots: by model; model_labels: values of the label that names it, if there is one."""
    named = ["model"] if any(model_labels.values()) else []
    labels = [*named, "draft", "verifier"]
    rows = [
        ([*model_labels[model], draft, verifier], done)
        for model, of_model in snapshots.items()
        for (draft, verifier), done in of_model.items()
    ]
    for field, text in COUNTERS.items():
        family = CounterMetricFamily(f"drafthouse_spec_{field}", text, labels=labels)
        for values, done in rows:
            family.add_metric(values, getattr(done, field))
        yield family
    for field, text in PER_POSITION.items():
        family = CounterMetricFamily(f"drafthouse_spec_{field}", text, labels=[*labels, "position"])
        for values, done in rows:
            for position, count in sorted(getattr(done, field).items()):
                family.add_metric([*values, str(position)], count)
        yield family
    lengths = HistogramMetricFamily("drafthouse_spec_draft_length", "Length of a step's deepest draft", labels=labels)
    for values, done in rows:
        total = sum(length * count for length, count in done.sizes.items())
        lengths.add_metric(values, _buckets(done), sum_value=total)
    yield lengths


def _buckets(done: SpecStatistics) -> list[tuple[str, int]]:
    """Steps whose draft was at most so long."""
    bounded = [
        (floatToGoString(bound), sum(count for length, count in done.sizes.items() if length <= bound))
        for bound in LENGTH_BUCKETS
    ]
    return [*bounded, ("+Inf", sum(done.sizes.values()))]
