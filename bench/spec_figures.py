"""Pictures of what `bench spec` has measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.figures import require, sides
from bench.spec_acceptance import Acceptance
from bench.spec_load import LEAST, Throughput
from bench.spec_overhead import FORWARD, MOST, Overhead
from bench.spec_passes import BUDGETS, Passes
from bench.spec_speed import BEST, BEST_DRAWN, Speed
from bench.spec_texts import Case, case_name
from bench.spec_vocabulary import ROWS, Vocabulary
from bench.spec_ways import PLAIN

_WIDTH = 14


def draw_speed(speed: Speed, path: Path) -> None:
    targets = {f"target, best of all: {BEST:g}": BEST, f"target, with a draft model: {BEST_DRAWN:g}": BEST_DRAWN}
    ratios = {
        case: {way: speed.ratios(case, way) for way in timings if way != PLAIN}
        for case, timings in speed.timings.items()
    }
    _draw_ratios(ratios, "times as fast as plain decoding, one request", targets, path)


def draw_load(measured: Throughput, path: Path) -> None:
    ratios = {
        case: {way: measured.ratios(case, way) for way in rates if way != PLAIN}
        for case, rates in measured.rates.items()
    }
    _draw_ratios(ratios, "throughput over plain decoding", {f"target, auto: {LEAST:g}": LEAST}, path)


def _draw_ratios(
    ratios: Mapping[Case, Mapping[str, Sequence[float]]], label: str, targets: Mapping[str, float], path: Path
) -> None:
    """A panel per case; bars are medians, points rounds."""
    pyplot = require()
    height = 2 + 0.5 * max(map(len, ratios.values()))
    figure, axes = pyplot.subplots(2, 2, figsize=(_WIDTH, height), layout="constrained")
    for axis, (case, by_way) in zip(axes.flat, ratios.items(), strict=True):
        for place, values in enumerate(by_way.values()):
            axis.barh(place, statistics.median(values), 0.7, color="C0", alpha=0.5)
            axis.plot(values, [place] * len(values), "o", ms=3, color="C0", alpha=0.6)
        axis.axvline(1, color="black", lw=0.8)
        for number, (name, value) in enumerate(targets.items(), 1):
            axis.axvline(value, color=f"C{number}", lw=1, ls=":", label=name)
        axis.set_yticks(range(len(by_way)), list(by_way), fontsize=8)
        axis.invert_yaxis()
        axis.set(title=case_name(case))
    figure.supxlabel(label)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9)
    _save(pyplot, figure, path)


def draw_acceptance(found: Acceptance, path: Path) -> None:
    pyplot = require()
    figure, axes = pyplot.subplots(1, len(found.rows), figsize=(_WIDTH, 5.5), layout="constrained", squeeze=False)
    for axis, (task, rows) in zip(axes[0], found.rows.items(), strict=True):
        for place, row in enumerate(rows):
            axis.errorbar(
                100 * row.measured.value, place, xerr=sides([row.measured], 100), fmt="o", ms=4, capsize=2, color="C0"
            )
            if row.optimum is not None:
                axis.plot(100 * row.optimum.value, place, "|", ms=14, mew=2, color="C3")
        names = [f"{row.drafts} drafts, {row.law}; {row.rule}" if row.drafts > 1 else row.rule for row in rows]
        axis.set_yticks(range(len(rows)), names, fontsize=8)
        axis.invert_yaxis()
        axis.set(xlabel="one of the drafts is accepted, %; red: the most that any rule could", title=task)
        axis.grid(alpha=0.25)
    _save(pyplot, figure, path)


def draw_passes(found: Passes, path: Path) -> None:
    pyplot = require()
    figure, axes = pyplot.subplots(2, 2, figsize=(_WIDTH, 12), layout="constrained")
    colours = pyplot.get_cmap("tab20").colors
    for axis, (case, rows) in zip(axes.flat, found.rows.items(), strict=True):
        names = list(dict.fromkeys((row.drafts, row.rule) for row in rows))
        for number, name in enumerate(names):
            own = [row for row in rows if (row.drafts, row.rule) == name]
            figures = [row.tokens for row in own]
            aside = 0.7 * (number / len(names) - 0.5)
            axis.errorbar(
                [BUDGETS.index(row.budget) + aside for row in own],
                [one.value for one in figures],
                yerr=sides(figures),
                fmt="o",
                ms=4,
                capsize=2,
                color=colours[number % len(colours)],
                label="; ".join(name),
            )
        axis.set_xticks(range(len(BUDGETS)), list(map(str, BUDGETS)))
        axis.set(xlabel="drafted tokens", ylabel="tokens per pass", title=case_name(case))
        axis.grid(alpha=0.25, axis="y")
        axis.legend(fontsize=7)
    _save(pyplot, figure, path)


def draw_vocabulary(found: Vocabulary, path: Path) -> None:
    pyplot = require()
    figure, (times, kept) = pyplot.subplots(1, 2, figsize=(_WIDTH, 5), layout="constrained")
    tokens = [part.tokens for part in found.parts]
    for count in ROWS:
        for name, of_parts in (
            ("head", [part.head for part in found.parts]),
            ("chain", [part.draft for part in found.parts]),
        ):
            whole = statistics.median(of_parts[-1][count])
            shares = [100 * statistics.median(one[count]) / whole for one in of_parts]
            times.plot(tokens, shares, "-o" if name == "head" else "--s", ms=4, label=f"{name}, {count} at once")
    for task in found.parts[-1].passes:
        figures = [found.kept(part, task) for part in found.parts]
        kept.errorbar(
            tokens,
            [100 * one.value for one in figures],
            yerr=sides(figures, 100),
            fmt="-o",
            ms=4,
            capsize=2,
            label=task,
        )
    times.set(ylabel="time, % of that of the whole vocabulary", title="What drafting costs", ylim=(0, None))
    kept.set(ylabel="tokens per pass, % of those with all", title="What drafts are worth")
    for axis in (times, kept):
        axis.set(xscale="log", xlabel="tokens that the draft model knows")
        axis.set_xticks(tokens, list(map(str, tokens)))
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    _save(pyplot, figure, path)


def draw_overhead(measured: Overhead, path: Path) -> None:
    pyplot = require()
    figure, axis = pyplot.subplots(figsize=(9, 4), layout="constrained")
    parts = [part for part in dict.fromkeys(p for way in measured.parts.values() for p in way) if part != FORWARD]
    for place, of_way in enumerate(measured.parts.values()):
        left = 0.0
        for number, part in enumerate(parts):
            share = 100 * statistics.median(of_way[part]) if part in of_way else 0.0
            axis.barh(place, share, 0.6, left=left, color=f"C{number}", label=part if not place else None)
            left += share
    axis.axvline(100 * MOST, color="black", lw=1, ls=":", label="target for the tree")
    axis.set_yticks(range(len(measured.parts)), list(measured.parts))
    axis.invert_yaxis()
    axis.set(xlabel="of a step, %", title="What steps spend outside of forward passes")
    axis.legend(fontsize=8)
    _save(pyplot, figure, path)


def _save(pyplot: Any, figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
