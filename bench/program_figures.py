"""Pictures of what `bench programs` has measured."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.figures import require, sides
from bench.program_eager import MODES, Eager, N
from bench.program_priority import DISTINCT, PRIORITY, SAMPLED, Priority
from bench.program_superposed import BATCHED, COUNTS, IN_TURN, TARGETS, Superposed

_SIZE = (13, 5)


def draw_priority(priority: Priority, path: Path) -> None:
    pyplot = require()
    figure, axes = pyplot.subplots(1, len(priority.rows), figsize=_SIZE, layout="constrained", squeeze=False)
    methods = [method.name for method in (*PRIORITY, *DISTINCT, *SAMPLED)]
    for axis, (task, by_method) in zip(axes[0], priority.rows.items(), strict=True):
        for name, row in by_method.items():
            number = methods.index(name)
            values = [100 * one.value for one in row.curve]
            style = "-" if number < len(PRIORITY) else ":" if number < len(PRIORITY) + len(DISTINCT) else "--"
            axis.plot(range(1, len(values) + 1), values, style, marker="o", ms=3, color=f"C{number}", label=name)
            end = len(values) * (1.05 + 0.03 * number)  # beside each other
            axis.errorbar([end], values[-1:], yerr=sides(row.curve[-1:], 100), capsize=2, lw=1, color=f"C{number}")
        axis.set(
            xscale="log",
            xlabel="completions, n; bars: intervals at the last",
            ylabel="prompts with a right one, %",
            title=task.capitalize(),
        )
        axis.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_superposed(superposed: Superposed, path: Path) -> None:
    pyplot = require()
    count = 1 + len(superposed.coverage)
    figure, axes = pyplot.subplots(1, count, figsize=_SIZE, layout="constrained", squeeze=False)
    speed = axes[0][0]
    ways = [way for way in superposed.seconds[COUNTS[0]] if way not in (IN_TURN, BATCHED)]
    bars = [(way, base) for base in (IN_TURN, BATCHED) for way in ways]
    width = 0.8 / len(bars)
    for number, (way, base) in enumerate(bars):
        ratios = [superposed.ratios(n, way, base) for n in COUNTS]
        middles = [statistics.median(one) for one in ratios]
        spans = [
            [middle - min(one) for middle, one in zip(middles, ratios, strict=True)],
            [max(one) - middle for middle, one in zip(middles, ratios, strict=True)],
        ]
        places = [place + (number - (len(bars) - 1) / 2) * width for place in range(len(COUNTS))]
        shade = {"color": f"C{ways.index(way)}", "alpha": 1.0 if base == IN_TURN else 0.45, "error_kw": {"lw": 0.8}}
        drawn = speed.bar(places, middles, 0.92 * width, yerr=spans, label=f"{way} over {base}", **shade)
        speed.bar_label(drawn, fmt="%.1f", fontsize=7, padding=2)
    for place, n in enumerate(COUNTS):
        label = None if place else "target, over samples in turn"
        speed.plot([place - 0.45, place + 0.45], [TARGETS[n]] * 2, color="black", lw=1.2, label=label)
    speed.axhline(1.0, color="grey", lw=0.8, ls=":")
    speed.set_xticks(range(len(COUNTS)), [f"n = {n}" for n in COUNTS])
    speed.set(ylabel="times faster, median and range of rounds", title="Wall time")
    speed.legend(fontsize=7, loc="upper left")
    for axis, (measure, by_n) in zip(axes[0][1:], superposed.coverage.items(), strict=True):
        names = list(by_n[COUNTS[0]])
        width = 0.8 / len(names)
        for number, name in enumerate(names):
            figures = [by_n[n][name] for n in COUNTS]
            places = [place + (number - (len(names) - 1) / 2) * width for place in range(len(COUNTS))]
            values = [100 * one.value for one in figures]
            axis.bar(places, values, 0.92 * width, yerr=sides(figures, 100), label=name, error_kw={"lw": 0.8})
        axis.set_xticks(range(len(COUNTS)), [f"n = {n}" for n in COUNTS])
        lines = superposed.covered[measure]
        axis.set(ylabel="covered, %", title=f"Next: {measure} ({lines} lines)")
        axis.legend(fontsize=7, loc="upper left")
    for axis in axes[0]:
        axis.set_ylim(0, 1.35 * axis.get_ylim()[1])  # room for the legend
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_eager(eager: Eager, path: Path) -> None:
    pyplot = require()
    figure, (curve, saved) = pyplot.subplots(1, 2, figsize=_SIZE, layout="constrained")
    tokens = eager.curve_tokens
    curve.plot(tokens, [100 * one.value for one in eager.curve], color="black", marker=".", label="parallel samples")
    low, high = ([100 * getattr(one, end) for one in eager.curve] for end in ("low", "high"))
    curve.fill_between(tokens, low, high, color="black", alpha=0.07, lw=0)
    for k in (2**i for i in range(N.bit_length())):
        curve.annotate(str(k), (tokens[k - 1], 100 * eager.curve[k - 1].value), xytext=(0, 5), **_NEAR)
    for number, mode in enumerate(MODES):
        rows = {one.theta: row for one, row in eager.rows.items() if one.mode == mode}
        color = f"C{number}"
        _points(curve, rows, color, f"EAGER {mode}, by theta", below=bool(number))
        places = [place + (number - 0.5) * 0.4 for place in range(len(rows))]
        figures = [row.saved for row in rows.values()]
        values, spans = [100 * one.value for one in figures], sides(figures, 100)
        drawn = saved.bar(places, values, 0.37, yerr=spans, color=color, label=f"EAGER {mode}", error_kw={"lw": 0.8})
        tuned = list(rows).index(eager.tuned[mode])
        drawn[tuned].set(edgecolor="black", linewidth=1.5)
    curve.set(
        xscale="log",
        xlabel="tokens computed per problem",
        ylabel="problems solved, %",
        title="pass@k against its price",
    )
    curve.set_xticks(ticks := [25, 50, 100, 200, 400], list(map(str, ticks)))
    curve.minorticks_off()
    curve.grid(alpha=0.25)
    curve.legend(fontsize=8, loc="lower right")
    thetas = sorted({one.theta for one in eager.rows})
    saved.set_xticks(range(len(thetas)), [f"{theta:g}" for theta in thetas])
    saved.axhline(0.0, color="black", lw=0.8)
    saved.set_ylim(max(-100.0, saved.get_ylim()[0]), 100.0)
    saved.set(xlabel="theta, nats (black edge: tuned on other problems)", ylabel="tokens saved at equal pass@k, %")
    saved.set_title("Saved against parallel samples")
    saved.legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


_NEAR = {"textcoords": "offset points", "fontsize": 7, "ha": "center"}


def _points(axes: Any, rows: dict[float, Any], color: str, label: str, below: bool) -> None:
    xs, ys = [row.tokens.value for row in rows.values()], [100 * row.solved.value for row in rows.values()]
    bars = sides([row.solved for row in rows.values()], 100)
    axes.errorbar(xs, ys, yerr=bars, fmt="o", ms=5, lw=0.8, color=color, label=label)
    for theta, x, y in zip(rows, xs, ys, strict=True):
        axes.annotate(f"{theta:g}", (x, y), xytext=(10, -11 if below else 5), color=color, **_NEAR)
