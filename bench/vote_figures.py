"""Pictures of what `bench voting` has measured."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.figures import require, sides
from bench.vote_cost import PLAIN, TARGET_RATIO, Cost
from bench.vote_draws import NAMES, Draws
from bench.vote_rules import KS, SC, Rules
from bench.vote_special import Special
from bench.vote_stopping import TOLERATED, Stopping

_SIZE = (13, 5.5)


def draw_rules(rules: Rules, path: Path) -> None:
    pyplot = require()
    figure, (accuracy, error) = pyplot.subplots(1, 2, figsize=(14, 7), layout="constrained")
    for number, (name, by_k) in enumerate(rules.summaries.items()):
        style: dict[str, Any] = {"color": f"C{number % 10}", "ls": "-" if number < 10 else "--", "marker": "o", "ms": 3}
        style["lw"] = 2.5 if name == SC.name else 1.2
        for axis, measure in ((accuracy, "accuracy"), (error, "ece")):
            if by_k[KS[-1]][measure] is None:
                continue
            values = [100 * by_k[k][measure] for k in KS]
            spans = [100 * by_k[k][f"{measure}_std"] for k in KS]
            axis.errorbar(KS, values, yerr=spans, label=name, capsize=2, elinewidth=0.7, **style)
    accuracy.set(ylabel="right answers, %", title="Accuracy, mean and deviation over orders")
    error.set(ylabel="expected calibration error, points", title="Calibration of the reported confidence")
    for axis in (accuracy, error):
        _by_k(axis)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    _save(pyplot, figure, path)


def draw_special(special: Special, path: Path) -> None:
    pyplot = require()
    figure, axis = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    places = range(len(special.rows))
    for offset, label, figures in (
        (-0.2, "rule", [row.accuracy for row in special.rows]),
        (0.2, "beside", [row.other for row in special.rows]),
    ):
        values = [100 * one.value for one in figures]
        axis.barh([place + offset for place in places], values, 0.38, xerr=sides(figures, 100), label=label)
    axis.set_yticks(
        list(places), [f"{row.method}, K = {row.k}\nbeside {row.beside}" for row in special.rows], fontsize=8
    )
    axis.invert_yaxis()
    axis.set(xlabel="right answers, %", title="Rules that need more than samples of the plain prompt")
    axis.legend()
    _save(pyplot, figure, path)


def draw_stopping(stopping: Stopping, path: Path) -> None:
    pyplot = require()
    figure, axis = pyplot.subplots(figsize=(9, 6), layout="constrained")
    families: dict[str, list[str]] = {}
    for name in stopping.rows:
        families.setdefault(name.partition(",")[0], []).append(name)
    for number, (family, names) in enumerate(families.items()):
        rows = [stopping.rows[name] for name in names]
        saved, lost = ([100 * getattr(row, key).value for row in rows] for key in ("saved", "lost"))
        errors = {"xerr": sides([row.saved for row in rows], 100), "yerr": sides([row.lost for row in rows], 100)}
        axis.errorbar(saved, lost, **errors, marker="o", ms=5, lw=1, elinewidth=0.6, color=f"C{number}", label=family)
        for name, x, y in zip(names, saved, lost, strict=True):
            setting = name.partition(", ")[2].partition(" ")[2]
            axis.annotate(setting, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8, color=f"C{number}")
    axis.axhline(100 * TOLERATED, color="black", lw=1, ls=":", label=f"{100 * TOLERATED:g} points")
    axis.axhline(0, color="black", lw=0.6)
    axis.set(
        xlabel=f"samples saved of {stopping.cap}, %",
        ylabel="accuracy lost, points",
        title="Adaptive stopping, by threshold, window or alpha",
    )
    axis.grid(alpha=0.25)
    axis.legend(loc="upper left")
    _save(pyplot, figure, path)


def draw_draws(draws: Draws, path: Path) -> None:
    pyplot = require()
    figure, (accuracy, deviation, covered) = pyplot.subplots(1, 3, figsize=(16, 5.5), layout="constrained")
    rows = list(draws.rows.values())
    for number, name in enumerate(NAMES):
        style: dict[str, Any] = {"color": f"C{number}", "marker": "o", "ms": 4, "capsize": 2, "lw": 1.2, "label": name}
        places = [k * (1.04 if number else 0.96) for k in KS]  # beside each other
        for axis, figures in (
            (accuracy, [row.accuracy[number] for row in rows]),
            (deviation, [row.deviation[number] for row in rows]),
            (covered, [row.covered[number] for row in rows]),
        ):
            axis.errorbar(places, [100 * one.value for one in figures], yerr=sides(figures, 100), **style)
    if draws.law is not None:
        ks = [one.k for one in draws.coverage]
        covered.plot(
            ks, [100 * draws.law.at(k) for k in ks], color="black", lw=1, ls=":", label="power law, independent"
        )
    accuracy.set(ylabel="right answers, %", title="Accuracy of self-consistency")
    deviation.set(ylabel="points", title="Deviation of one problem's credit between requests")
    covered.set(ylabel="requests with a right sample, %", title="Coverage")
    for axis in (accuracy, deviation, covered):
        _by_k(axis)
        axis.legend(fontsize=9)
    _save(pyplot, figure, path)


def draw_cost(cost: Cost, path: Path) -> None:
    pyplot = require()
    figure, axis = pyplot.subplots(figsize=_SIZE, layout="constrained")
    names = [name for name in cost.seconds if name != PLAIN]
    ratios = [cost.ratios(name) for name in names]
    for place, values in enumerate(ratios):
        axis.plot([place] * len(values), values, "o", ms=4, alpha=0.4, color=f"C{place}")
        axis.plot([place - 0.2, place + 0.2], [statistics.median(values)] * 2, lw=2, color=f"C{place}")
    axis.axhline(TARGET_RATIO, color="black", lw=1, ls=":", label="target")
    axis.set_xticks(range(len(names)), names)
    axis.set(ylabel=f"time over {PLAIN}", title="A vote beside the same samples; points are rounds, lines medians")
    axis.legend()
    _save(pyplot, figure, path)


def _by_k(axis: Any) -> None:
    axis.set(xscale="log", xlabel="samples, K")
    axis.set_xticks(KS, list(map(str, KS)))
    axis.minorticks_off()
    axis.grid(alpha=0.25)


def _save(pyplot: Any, figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
