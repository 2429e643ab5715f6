"""Markdown and JSON of what `bench programs` has measured."""

from __future__ import annotations

from typing import Any

from bench import claims, estimates, program_eager, program_priority
from bench.estimates import Figure
from bench.program_eager import Eager
from bench.program_priority import Priority
from bench.program_superposed import BATCHED, COUNTS, HEAD_CHARACTERS, IN_TURN, Superposed
from bench.tables import markdown, spread

_INTERVALS = (
    f"± is half of the {estimates.LEVEL:.0%} percentile-bootstrap interval over {{items}}, {estimates.RESAMPLES} "
    "resamples; parentheses hold its ends. A claim is reproduced or contradicted where the whole interval says so."
)


def priority_markdown(priority: Priority) -> list[str]:
    size, n = priority.size, program_priority.N
    header = (
        "task",
        "method",
        "choices",
        "different, %",
        "different texts, %",
        "first right, %",
        f"any of {n} right, %",
        "passes",
        "tokens computed",
    )
    rows = [
        [
            task,
            name,
            row.choices.short(1),
            row.unique.short(1, 100),
            row.texts.short(1, 100),
            row.curve[0].short(1, 100),
            row.curve[-1].short(1, 100),
            row.passes.short(0),
            row.tokens.short(0),
        ]
        for task, by_method in priority.rows.items()
        for name, row in by_method.items()
    ]
    return [
        f"Next line: {size.lines} lines of held-out Python, evenly spread, each behind up to {size.prompt_tokens} "
        "tokens of its file, which go on to its indentation; a choice ends with its line, or after "
        f"{size.line_tokens} tokens, and is right if it is the whole line (spaces at its end do not count). Word "
        f"problem: {size.problems} held-out ones, up to {size.solution_tokens} tokens.",
        "",
        f"All have n = {n}. First right: of a search its first choice, of samples the mean. Passes: forward passes of "
        "a request, one after the other. Tokens computed: behind the prompt. The bound on them is checked in every "
        "request whose choices are all that was decoded; 'distinct texts' drops choices that read like earlier ones.",
        "",
        _INTERVALS.format(items="prompts"),
        "",
        *markdown(header, rows),
        *_skipped(priority.skipped),
        "",
        *claims.table(priority.claims),
    ]


def superposed_markdown(superposed: Superposed) -> list[str]:
    size = superposed.size
    speed = []
    for n in COUNTS:
        for way, seconds in superposed.seconds[n].items():
            ratios = ["" if way == base else spread(superposed.ratios(n, way, base), 2) for base in (IN_TURN, BATCHED)]
            speed.append([str(n), way, spread([1000 * one / size.timed_lines for one in seconds], 1), *ratios])
    covered = [
        [measure, str(superposed.covered[measure]), str(n), name, figure.short(1, 100)]
        for measure, by_n in superposed.coverage.items()
        for n, by_name in by_n.items()
        for name, figure in by_name.items()
    ]
    faster = ("times faster than samples in turn", "than samples batched")
    return [
        f"Prompts: up to {size.prompt_tokens} tokens before lines of held-out Python. n drafts or samples of "
        f"{size.tokens} tokens; samples have top-p 0.95. The n-grams are those of the model's training source.",
        "",
        f"Time: {size.timed_lines} prompts a round, {size.rounds} rounds after one to warm up, all ways one after the "
        "other on every prompt, which the prefix cache does not know at first; nothing ends early. In turn: n "
        "requests, each sent when the one before has been answered; they find the prompt's whole pages in the cache. "
        "Batched: one request. Median (lowest-highest) over rounds.",
        "",
        *markdown(("n", "way", "ms per prompt", *faster), speed),
        "",
        "Coverage: the share of lines for which at least one of n drafts begins with the file's next "
        f"{HEAD_CHARACTERS} characters, or with the whole next line and its line break (lines of up to {size.tokens} "
        f"tokens). Samples: the mean over all choices of n among {max(COUNTS)}. T = 0.3 is the best of 0.06, 0.3 and 1 "
        "on 120 lines of the same files, so its figures are a little too good; 0.06 is the default, and the paper's.",
        "",
        _INTERVALS.format(items="lines"),
        "",
        *markdown(("measure", "lines", "n", "method", "covered, %"), covered),
        "",
        *claims.table(superposed.claims),
    ]


def eager_markdown(eager: Eager) -> list[str]:
    size, n = eager.size, program_eager.N
    rows = [
        [
            one.mode,
            f"{one.theta:g}" + (" (tuned)" if eager.tuned[one.mode] == one.theta else ""),
            row.solved.short(1, 100),
            row.sequences.short(1),
            row.tokens.short(0),
            row.saved.text(1, 100),
            row.saved_of_all.text(1, 100),
            row.behind_all.text(1, 100),
        ]
        for one, row in eager.rows.items()
    ]
    parallel = [
        [str(k), eager.curve[k - 1].short(1, 100), f"{eager.curve_tokens[k - 1]:.0f}"]
        for k in (2**i for i in range(n.bit_length()))
    ]
    return [
        f"{size.problems} held-out word problems, temperature {program_eager.TEMPERATURE:g}; EAGER "
        f"with at most {n} sequences, parallel samples up to {n}. Solved: one of the sequences is right. Tokens: "
        "computed behind the prompt. The paper, on large reasoning models: up to 64 % fewer than parallel sampling.",
        "",
        "Saved at equal pass@k: against the tokens for which the curve of 1 to "
        f"{n} parallel samples, joined by straight lines, solves as many; above its end it counts as the end, which is "
        f"too little. Tuned: on {size.tuning_problems} other problems, the one of the fewest tokens that "
        f"solves as many as {n} samples.",
        "",
        _INTERVALS.format(items="problems"),
        "",
        *markdown(
            (
                "forks",
                "theta, nats",
                "solved, %",
                "sequences",
                "tokens",
                "saved at equal pass@k, %",
                f"saved of {n} samples, %",
                f"solved less than by {n} samples, points",
            ),
            rows,
        ),
        "",
        *markdown(("parallel samples", "solved, %", "tokens"), parallel),
        "",
        *claims.table(eager.claims),
    ]


def priority_json(priority: Priority) -> dict[str, Any]:
    return {
        "size": vars(priority.size),
        "interval": _interval(),
        "n": program_priority.N,
        "tasks": {
            task: {name: _figures(row) for name, row in by_method.items()} for task, by_method in priority.rows.items()
        },
        "ahead": {
            task: {search: {other: gap.as_json() for other, gap in gaps.items()} for search, gaps in by_search.items()}
            for task, by_search in priority.ahead.items()
        },
        "skipped": priority.skipped,
        "claims": [claim.as_json() for claim in priority.claims],
    }


def superposed_json(superposed: Superposed) -> dict[str, Any]:
    return {
        "size": vars(superposed.size),
        "interval": _interval(),
        "seconds": {
            n: {way: [round(one, 6) for one in seconds] for way, seconds in by_way.items()}
            for n, by_way in superposed.seconds.items()
        },
        "coverage": {
            measure: {
                "lines": superposed.covered[measure],
                **{str(n): {name: figure.as_json() for name, figure in by_name.items()} for n, by_name in by_n.items()},
            }
            for measure, by_n in superposed.coverage.items()
        },
        "claims": [claim.as_json() for claim in superposed.claims],
    }


def eager_json(eager: Eager) -> dict[str, Any]:
    return {
        "size": vars(eager.size),
        "interval": _interval(),
        "n": program_eager.N,
        "parallel": [
            {"samples": k, "solved": figure.as_json(), "tokens": round(tokens, 2)}
            for k, (figure, tokens) in enumerate(zip(eager.curve, eager.curve_tokens, strict=True), 1)
        ],
        "settings": [{**vars(one), **_figures(row)} for one, row in eager.rows.items()],
        "tuned": eager.tuned,
        "claims": [claim.as_json() for claim in eager.claims],
    }


def _figures(row: program_priority.Row | program_eager.Row) -> dict[str, Any]:
    return {
        name: value.as_json() if isinstance(value, Figure) else [one.as_json() for one in value]
        for name, value in vars(row).items()
    }


def _interval() -> dict[str, Any]:
    return {"kind": "percentile bootstrap", "level": estimates.LEVEL, "resamples": estimates.RESAMPLES}


def _skipped(skipped: dict[str, str]) -> list[str]:
    return ["", "Skipped:", "", *(f"- {name}: {reason}" for name, reason in skipped.items())] if skipped else []
