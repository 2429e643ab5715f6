"""The picture of what `bench runners` has measured."""

from __future__ import annotations

import statistics
from pathlib import Path

from bench.figures import require
from bench.runner_costs import Costs
from bench.runner_ways import VLLM, WAYS

_WIDTH = 0.8 / len(WAYS)  # of a bar


def draw_costs(costs: Costs, path: Path) -> None:
    """Bars are medians over rounds, points rounds."""
    pyplot = require()
    figure, (rates, delays, starts) = pyplot.subplots(1, 3, figsize=(14, 4.5), layout="constrained")
    for number, way in enumerate(WAYS):
        for place, timings in enumerate(costs.timings.values()):
            at = place + (number - (len(WAYS) - 1) / 2) * _WIDTH
            label = way.name if not place else None
            for axis, values in (
                (
                    rates,
                    [one / statistics.median(timings[VLLM].tokens_per_s) for one in timings[way.name].tokens_per_s],
                ),
                (delays, [1000 * one for one in timings[way.name].first_s]),
            ):
                axis.bar(at, statistics.median(values), _WIDTH, color=f"C{number}", alpha=0.5, label=label)
                axis.plot([at] * len(values), values, "o", ms=3, color=f"C{number}", alpha=0.6)
    for axis, text in ((rates, f"tokens per second, over {VLLM}"), (delays, "time to first token, ms")):
        axis.set_xticks(range(len(costs.timings)), [f"{at_once} at once" for at_once in costs.timings])
        axis.set(title=text)
    rates.axhline(1, color="black", lw=0.8)
    delays.set(yscale="log")
    for number, own in enumerate(costs.starts.values()):
        starts.barh(
            number,
            statistics.median(own.answered_s),
            0.6,
            color="C7",
            alpha=0.4,
            label=None if number else "first token",
        )
        starts.barh(
            number, statistics.median(own.ready_s), 0.6, color="C0", alpha=0.6, label=None if number else "ready"
        )
    starts.set_yticks(range(len(costs.starts)), list(costs.starts))
    starts.invert_yaxis()
    starts.set(title="start, s")
    starts.legend(fontsize=8)
    figure.legend(*rates.get_legend_handles_labels(), loc="outside lower center", ncols=len(WAYS), fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
