"""The numbers of `drafthouse vote` as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.figures import require


def replay(document: Mapping[str, Any], path: Path) -> None:
    """Accuracy and calibration error against K, and coverage."""
    pyplot = require()
    figure, (accuracy, ece, covered) = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for axes, field, title in ((accuracy, "accuracy", "Accuracy"), (ece, "ece", "Calibration error (ECE)")):
        for rule, by_k in document["results"].items():
            rows = {int(k): row for k, row in by_k.items() if row[field] is not None}
            values = [100 * row[field] for row in rows.values()]
            spread = [100 * row[f"{field}_std"] for row in rows.values()]
            axes.errorbar(list(rows), values, yerr=spread, marker="o", ms=4, lw=1, capsize=2, label=rule)
        axes.set(xscale="log", xlabel="samples per vote", ylabel="%", title=title)
        axes.legend()
    _draw_coverage(covered, document)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def coverage(document: Mapping[str, Any], path: Path) -> None:
    pyplot = require()
    figure, axes = pyplot.subplots(figsize=(6, 4.5), layout="constrained")
    _draw_coverage(axes, document)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def calibrate(document: Mapping[str, Any], path: Path) -> None:
    """Accuracy against confidence; on the line they are equal."""
    pyplot = require()
    figure, axes = pyplot.subplots(figsize=(5.5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="black", lw=0.8)
    for rule, found in document["results"].items():
        confidence, accuracy = ([one[field] for one in found["bins"]] for field in ("confidence", "accuracy"))
        axes.plot(confidence, accuracy, marker="o", ms=4, lw=1, label=rule)
    axes.set(xlabel="confidence", ylabel="accuracy", title=f"Reliability, K = {document['settings']['k']}")
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_coverage(axes: Any, document: Mapping[str, Any]) -> None:
    points = {int(k): point for k, point in document["coverage"].items()}
    axes.plot(list(points), [100 * one["pass_at_k"] for one in points.values()], "o", ms=4, label="pass@k")
    bands = {k: one["interval"] for k, one in points.items() if one["interval"] is not None}
    low, high = ([100 * one[side] for one in bands.values()] for side in (0, 1))
    axes.fill_between(list(bands), low, high, alpha=0.2, label="95% interval over problems")
    if (law := document["power_law"]) is not None:
        fitted = {k: one["pass_at_k"] - law["residuals"][str(k)] for k, one in points.items()}
        fitted |= {int(k): value for k, value in law["extrapolated"].items()}
        axes.plot(list(fitted), [100 * value for value in fitted.values()], lw=1, label="power law, extrapolated")
    axes.set(xscale="log", xlabel="samples k", ylabel="%", title="Coverage")
    axes.legend()
