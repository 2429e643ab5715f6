"""Markdown and JSON of what `bench samplers` has measured, with what it says about the two claims it checks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from bench import estimates
from bench.estimates import Figure, verdict
from bench.sampler_cost import FREE, MIXED_TARGET, ROWS, SORT, TARGETS, Cost, Timing
from bench.sampler_quality import PROBLEM_MEASURES, SOURCE_MEASURES, BranchGap, Pair, Quality
from bench.tables import markdown, spread

_COLUMNS = {
    "nll": ("NLL, nats", 2, 1),
    "distinct_1": ("distinct-1", 3, 1),
    "distinct_2": ("distinct-2", 3, 1),
    "distinct_3": ("distinct-3", 3, 1),
    "self_bleu": ("self-BLEU", 3, 1),
    "repeated_4": ("repeated 4-grams, %", 1, 100),
    "accuracy": ("one sample right, %", 1, 100),
    "majority": ("majority right, %", 1, 100),
    "any_right": ("any right, %", 1, 100),
    "deviation": ("deviation of mean accuracy, %", 1, 100),
}


def quality_markdown(quality: Quality) -> list[str]:
    size = quality.size
    header = ["method", *(_COLUMNS[measure][0] for measure in (*SOURCE_MEASURES, *PROBLEM_MEASURES))]
    rows = [
        [name, *(figures[measure].short(*_COLUMNS[measure][1:]) for measure in (*SOURCE_MEASURES, *PROBLEM_MEASURES))]
        for name, figures in quality.rows.items()
    ]
    return [
        f"Held-out Python: {size.prompts} prompts of {size.prompt_tokens} tokens, {size.n} samples of "
        f"{size.source_tokens} tokens each (the ending token is masked). NLL: mean per token of the output under the "
        "model itself, T = 1. distinct-n and self-BLEU (order 4): over the samples of a prompt. Repeated 4-grams: "
        "share of an output's 4-grams that it held before (seq-rep-4).",
        "",
        f"Held-out word problems: {size.problems}, {size.n} samples each, drawn {size.draws} times. Deviation: of the "
        f"mean accuracy of {size.n} samples of one problem, over these draws (root mean square over problems).",
        "",
        f"± is half of the {estimates.LEVEL:.0%} percentile-bootstrap interval over prompts or problems, "
        f"{estimates.RESAMPLES} resamples; all samples of a prompt stay together. All methods have the same prompts "
        "and seeds.",
        "",
        *markdown(header, rows),
        *_skipped(quality.skipped),
        "",
        *_pairs(quality),
        "",
        *_gap(quality),
    ]


def _pairs(quality: Quality) -> list[str]:
    lines = ["### Arithmetic draws beside independent ones", ""]
    if not quality.pairs:
        return [*lines, "Not measured: this build has no arithmetic draw."]
    size = quality.size
    draws = max(size.pair_draws, size.draws)
    rows = [
        [
            pair.independent,
            *(one.text(2, 100) for one in pair.deviations),
            *(f"{100 * one.value / size.problems**0.5:.2f}" for one in pair.deviations),
            pair.ratio.text(2),
            verdict(pair.ratio, below=1.0),
        ]
        for pair in quality.pairs
    ]
    header = (
        "law",
        "independent, %",
        "arithmetic, %",
        f"independent, mean of {size.problems} problems, %",
        f"arithmetic, mean of {size.problems} problems, %",
        "ratio",
        "lower deviation",
    )
    return [
        *lines,
        f"Standard deviation, over {draws} draws, of the mean accuracy of {size.n} samples: of one problem (root mean "
        "square) and, divided by the root of their number, of the mean over all problems, which are drawn "
        "independently. Intervals in parentheses; the ratio's resamples the same problems for both.",
        "",
        *markdown(header, rows),
    ]


def _gap(quality: Quality) -> list[str]:
    lines = ["### Typical sampling beside top-p at equal NLL", ""]
    if not quality.typical:
        return [*lines, "Not measured: this build has no typical sampling."]
    header = ("setting", "NLL, nats", "repeated 4-grams, %")
    rows = [
        [name, figures["nll"].text(2), figures["repeated_4"].text(2, 100)]
        for name, figures in {**quality.top_p, **quality.typical}.items()
    ]
    how = (
        "Each family's mean share of repeated 4-grams is joined by straight lines over its mean NLL, and the two lines "
        f"are compared at {estimates.GRID} evenly spaced NLLs of the range both cover; the interval resamples prompts "
        "for both together. Typical sampling has its lowest NLL at a middle parameter: the settings on each side of it "
        "are a line of their own."
    )
    sides = ("side", "NLL both cover", "typical minus top-p, points", "fewer repetitions")
    return [
        *lines,
        how,
        "",
        *markdown(sides, [_side(branch) for branch in quality.gaps]),
        "",
        *markdown(header, rows),
    ]


def _side(branch: BranchGap) -> list[str]:
    name = f"{branch.settings[0]} to {branch.settings[-1]}"
    if branch.gap is None:
        return [name, "none", "-", "undecided"]
    gap = branch.gap
    return [
        name,
        f"{gap.low:.2f} to {gap.high:.2f}",
        gap.difference.text(2, 100),
        verdict(gap.difference, below=0.0),
    ]


def cost_markdown(cost: Cost) -> list[str]:
    size = cost.size
    rows = [_cost_row("softmax + multinomial", "baseline", cost.baseline, None)]
    for name, timings in cost.timings.items():
        rows.append(_cost_row(name, cost.groups[name], timings, TARGETS.get(cost.groups[name])))
    rows.append(_cost_row("every row another", "mixed", cost.mixed, MIXED_TARGET))
    columns = [f"{what}, {name}" for name in ROWS for what in ("ms per step", "ratio")]
    return [
        f"{size.rows} rows of {size.vocab} logits, per step of `SamplerStack` (`sample` and `accept`), every chain "
        "with T = 0.8 and the `iid` draw unless it names another; 512 prompt and 128 output tokens of source per row. "
        f"{size.rounds} interleaved rounds of {size.steps} steps, median (lowest-highest). Ratios are to `softmax` and "
        "`torch.multinomial` on the same rows right before; that of the mixed batch to the sum of its types, each over "
        f"its own rows. Targets: {TARGETS[FREE]} ({FREE}), {TARGETS[SORT]} ({SORT}), {MIXED_TARGET} (mixed). Peaked "
        "rows fall like a power of the rank, flat ones are normal.",
        "",
        *markdown(("sampler", "kind", *columns, "target met"), rows),
        *_skipped(cost.skipped),
    ]


def _cost_row(name: str, group: str, timings: dict[str, Timing], target: float | None) -> list[str]:
    cells = [cell for kind in ROWS for cell in (spread(timings[kind].ms, 0), spread(timings[kind].ratios, 2))]
    return [name, group, *cells, _met(timings.values(), target)]


def _met(timings: Iterable[Timing], target: float | None) -> str:
    """By the median ratio on every kind of rows."""
    if target is None:
        return ""
    return "yes" if all(statistics.median(one.ratios) <= target for one in timings) else "no"


def _skipped(skipped: dict[str, str]) -> list[str]:
    return ["", "Skipped:", "", *(f"- {name}: {reason}" for name, reason in skipped.items())] if skipped else []


def quality_json(quality: Quality) -> dict[str, Any]:
    def table(rows: dict[str, dict[str, Figure]]) -> dict[str, Any]:
        return {name: {key: one.as_json() for key, one in figures.items()} for name, figures in rows.items()}

    def of(pair: Pair) -> dict[str, Any]:
        return {
            "independent": pair.independent,
            "arithmetic": pair.arithmetic,
            "deviation": [one.as_json() for one in pair.deviations],
            "ratio": pair.ratio.as_json(),
            "lower_deviation": verdict(pair.ratio, below=1.0),
        }

    return {
        "size": vars(quality.size),
        "interval": {"kind": "percentile bootstrap", "level": estimates.LEVEL, "resamples": estimates.RESAMPLES},
        "methods": table(quality.rows),
        "skipped": quality.skipped,
        "pairs": [of(pair) for pair in quality.pairs],
        "top_p": table(quality.top_p),
        "typical": table(quality.typical),
        "typical_minus_top_p": [
            {
                "settings": branch.settings,
                "repeated_4": branch.gap.difference.as_json(),
                "nll": [round(branch.gap.low, 4), round(branch.gap.high, 4)],
                "fewer_repetitions": verdict(branch.gap.difference, below=0.0),
            }
            for branch in quality.gaps
            if branch.gap is not None
        ],
    }


def cost_json(cost: Cost) -> dict[str, Any]:
    def of(timing: Timing) -> dict[str, Any]:
        return {"ms": [round(v, 3) for v in timing.ms], "ratio": [round(v, 4) for v in timing.ratios]}

    return {
        "size": vars(cost.size),
        "baseline": {kind: of(timing) for kind, timing in cost.baseline.items()},
        "samplers": {
            name: {"group": cost.groups[name], **{kind: of(timing) for kind, timing in timings.items()}}
            for name, timings in cost.timings.items()
        },
        "mixed": {kind: of(timing) for kind, timing in cost.mixed.items()},
        "targets": {**TARGETS, "mixed": MIXED_TARGET},
        "skipped": cost.skipped,
    }
