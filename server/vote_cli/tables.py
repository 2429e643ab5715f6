"""The numbers of `drafthouse vote` as tables for the terminal, each with what its columns mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

Shown = Sequence[RenderableType]
Columns = Mapping[str, tuple[str, str]]  # heading -> (field, what it means)

_REPLAY: Columns = {
    "accuracy %": ("accuracy", "problems whose answer is right"),
    "ECE %": ("ece", "expected calibration error of the confidence, 10 bins; biased upward for few problems"),
    "Brier": ("brier", "mean squared difference of confidence and rightness"),
    "NLL": ("nll", "mean cross entropy of the confidence, nats"),
    "AUROC": ("auroc", "chance that a right answer is more confident than a wrong one"),
    "abstain %": ("abstain_rate", "samples without a vote"),
    "covered %": ("coverage", "problems with a right sample among the K"),
    "precision %": ("precision", "right answers among those problems"),
}
_STOP: Columns = {
    "samples": ("mean_samples", "drawn per problem"),
    "saved %": ("saved", "of all samples"),
    "fired %": ("fired", "votes that the rule has ended early"),
    "accuracy %": ("accuracy", "problems whose answer is right"),
    "lost points": ("lost", "accuracy with all samples minus that"),
    "same answer %": ("same_answer", "votes that end as with all samples"),
}
_METRICS: Mapping[str, str] = {
    "ece": "expected calibration error, 10 bins of equal width",
    "ece_15_bins": "the same with 15 bins",
    "ece_equal_mass": "the same with 10 bins of about equally many problems",
    "ece_published": "as RPC's evaluator counts: confidences of 0 are in no bin",
    "brier": "mean squared difference of confidence and rightness",
    "nll": "mean cross entropy, nats",
    "auroc": "chance that a right answer is more confident than a wrong one",
    "aurc": "area under the risk-coverage curve; lower is better",
}


def replay(document: Mapping[str, Any]) -> Shown:
    settings = document["settings"]
    table = _table("K", "rule", *_REPLAY)
    for k in settings["k"]:
        for rule, by_k in document["results"].items():
            row = by_k[str(k)]
            table.add_row(str(k), rule, *(_spread(row, heading, field) for heading, (field, _) in _REPLAY.items()))
        table.add_section()
    note = f"Mean ± standard deviation over {settings['repeats']} repeats; K samples per vote."
    return [_title("Voting", settings), table, _legend(note, _REPLAY), *_coverage(document)]


def coverage(document: Mapping[str, Any]) -> Shown:
    return [_title("Coverage", document["settings"]), *_coverage(document)]


def calibrate(document: Mapping[str, Any]) -> Shown:
    settings = document["settings"]
    metrics = _table("metric", *document["results"])
    for metric in _METRICS:
        cells = [_with_interval(one["metrics"][metric]) for one in document["results"].values()]
        metrics.add_row(metric, *cells)
    metrics.add_row("without confidence", *(str(one["without_confidence"]) for one in document["results"].values()))
    bins = _table("rule", "problems", "confidence", "accuracy")
    for rule, found in document["results"].items():
        for one in found["bins"]:
            bins.add_row(rule, str(one["problems"]), f"{one['confidence']:.3f}", f"{one['accuracy']:.3f}")
        bins.add_section()
    note = f"K = {settings['k']}. Below each figure: 95% bootstrap interval over problems."
    lines = "\n".join(f"{name}: {meaning}" for name, meaning in _METRICS.items())
    return [_title("Calibration", settings), metrics, Text(f"{note}\n{lines}"), bins]


def stop(document: Mapping[str, Any]) -> Shown:
    settings = document["settings"]
    table = _table("rule", *_STOP)
    for rule, row in document["results"].items():
        table.add_row(Text(rule), *(_spread(row, heading, field) for heading, (field, _) in _STOP.items()))
    note = (
        f"Mean ± standard deviation over {settings['repeats']} repeats; "
        f"at most {settings['samples_cap']} samples, answers by {settings['method']}."
    )
    return [_title("Stopping rules", settings), table, _legend(note, _STOP)]


def _coverage(document: Mapping[str, Any]) -> Shown:
    table = _table("k", "pass@k %", "95% interval", "power law %")
    law = document["power_law"]
    for k, point in document["coverage"].items():
        fitted = "-" if law is None else f"{100 * (point['pass_at_k'] - law['residuals'][k]):.2f}"
        between = "-" if point["interval"] is None else "{:.2f} to {:.2f}".format(*(100 * x for x in point["interval"]))
        table.add_row(k, f"{100 * point['pass_at_k']:.2f}", between, fitted)
    if law is not None:
        table.add_section()
        for k, value in law["extrapolated"].items():
            table.add_row(k, "", "", f"{100 * value:.2f}")
    lines = [
        "pass@k: chance that k samples hold a right one, unbiased; interval: bootstrap over problems",
        "power law: too few points between 0 and 1 to fit one"
        if law is None
        else f"power law: exp(a k^b), a = {law['a']:.4g}, b = {law['b']:.4g}; rows without pass@k are extrapolated",
    ]
    return [table, Text("\n".join(lines))]


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("rule", "metric") else "right")
    return table


def _title(what: str, settings: Mapping[str, Any]) -> Text:
    fewest, most = settings["samples"]
    size = str(most) if fewest == most else f"{fewest} to {most}"
    return Text(
        f"{what}: {settings['file']}, {settings['problems']} problems, {size} samples each, "
        f"equivalence {settings['equiv']}, seed {settings['seed']}"
    )


def _legend(note: str, columns: Columns) -> Text:
    return Text("\n".join([note, *(f"{heading}: {meaning}" for heading, (_, meaning) in columns.items())]))


def _spread(row: Mapping[str, Any], heading: str, field: str) -> str:
    if row[field] is None:
        return "-"
    scale, digits = (100, 2) if heading.endswith(("%", "points")) else (1, 3)
    return f"{scale * row[field]:.{digits}f} ±{scale * row[field + '_std']:.{digits}f}"


def _with_interval(metric: Mapping[str, Any]) -> str:
    if metric["value"] is None:
        return "-"
    interval = metric["interval"]
    return f"{metric['value']:.3f}" + ("" if interval is None else "\n{:.3f} to {:.3f}".format(*interval))
