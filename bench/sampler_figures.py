"""Pictures of what `bench samplers` has measured."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.estimates import Figure
from bench.figures import require, sides
from bench.sampler_cost import ROWS, TARGETS, Cost
from bench.sampler_quality import Quality


def draw_quality(quality: Quality, path: Path) -> None:
    pyplot = require()
    figure, ((variety, repeats), (accuracy, deviation)) = pyplot.subplots(2, 2, figsize=(14, 12), layout="constrained")
    for name, figures in quality.rows.items():
        x, y = figures["nll"], figures["self_bleu"]
        variety.errorbar(x.value, y.value, xerr=sides([x]), yerr=sides([y]), fmt="o", ms=4, lw=0.5, color=_color(name))
    _name_points(variety, {name: (one["nll"].value, one["self_bleu"].value) for name, one in quality.rows.items()})
    variety.set(xlabel="NLL of the output, nats per token", ylabel="self-BLEU (lower: more varied)", title="Variety")

    for family, grid in (("top-p", quality.top_p), ("typical", quality.typical)):
        points = [(one["nll"], one["repeated_4"]) for one in grid.values()]  # in the order of the parameter
        if points:
            xs, ys = [x.value for x, _ in points], [100 * y.value for _, y in points]
            yerr = sides([y for _, y in points], 100)
            repeats.errorbar(xs, ys, yerr=yerr, marker="o", ms=4, lw=1, capsize=2, label=family)
            repeats.legend()
    repeats.set(
        yscale="log",
        xlabel="NLL of the output, nats per token",
        ylabel="repeated 4-grams, %",
        title="Repetition at equal NLL",
    )

    names = list(quality.rows)
    for offset, (measure, label) in (
        (-0.2, ("accuracy", "one sample")),
        (0.2, ("majority", f"majority of {quality.size.n}")),
    ):
        ones = [quality.rows[name][measure] for name in names]
        _bars(accuracy, [i + offset for i in range(len(names))], ones, 0.38, label)
    accuracy.set_yticks(range(len(names)), names, fontsize=6)
    accuracy.invert_yaxis()
    accuracy.set(xlabel="held-out problems right, %", title="Accuracy")
    accuracy.legend(fontsize=7, loc="lower right")

    for offset, index, label in ((-0.2, 0, "independent"), (0.2, 1, "arithmetic")):
        places = [i + offset for i in range(len(quality.pairs))]
        _bars(deviation, places, [pair.deviations[index] for pair in quality.pairs], 0.38, label)
    deviation.set_yticks(range(len(quality.pairs)), [pair.independent for pair in quality.pairs])
    deviation.invert_yaxis()
    deviation.set(xlabel=f"deviation of the mean accuracy of {quality.size.n} samples, %", title="Monte Carlo error")
    if quality.pairs:
        deviation.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_cost(cost: Cost, path: Path) -> None:
    pyplot = require()
    names = list(cost.timings)
    figure, axes = pyplot.subplots(figsize=(9, 0.35 * len(names) + 2), layout="constrained")
    for offset, kind in zip((-0.2, 0.2), ROWS, strict=True):
        ratios = [cost.timings[name][kind].ratios for name in names]
        medians = [statistics.median(one) for one in ratios]
        low = [middle - min(one) for middle, one in zip(medians, ratios, strict=True)]
        high = [max(one) - middle for middle, one in zip(medians, ratios, strict=True)]
        places = [i + offset for i in range(len(names))]
        axes.barh(places, medians, 0.38, xerr=(low, high), label=f"{kind} rows", error_kw={"lw": 0.8})
    for i, name in enumerate(names):
        if (target := TARGETS.get(cost.groups[name])) is not None:
            axes.plot([target, target], [i - 0.45, i + 0.45], color="black", lw=1.2)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="time over softmax + multinomial, median and range; line: target")
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _name_points(axes: Any, points: dict[str, tuple[float, float]]) -> None:
    """A name beside each point, as far as there is room: of names that would overlap the first ones are shown."""
    texts = [
        axes.annotate(name, place, fontsize=7, xytext=(4, 4), textcoords="offset points")
        for name, place in points.items()
    ]
    axes.figure.canvas.draw()
    shown: list[Any] = []
    for text in texts:
        box = text.get_window_extent()
        if any(box.overlaps(other) for other in shown):
            text.set_visible(False)
        else:
            shown.append(box)


def _bars(axes: Any, places: list[float], figures: list[Figure], height: float, label: str) -> None:
    values = [100 * one.value for one in figures]
    axes.barh(places, values, height, xerr=sides(figures, 100), label=label, error_kw={"lw": 0.6})


def _color(name: str) -> str:
    return "tab:red" if name.startswith("arithmetic") else "tab:blue"
