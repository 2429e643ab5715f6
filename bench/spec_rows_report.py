"""Markdown and JSON of what `bench spec` has found about drafts, rules and vocabularies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench import claims, estimates, spec_vocabulary
from bench.estimates import Figure
from bench.spec_acceptance import Acceptance
from bench.spec_passes import BUDGETS, SIBLINGS, Passes
from bench.spec_texts import ABOUT, case_json, case_name
from bench.spec_vocabulary import Vocabulary
from bench.tables import markdown, rounded, spread

_INTERVALS = (
    f"Parentheses hold the ends of the {estimates.LEVEL:.0%} percentile-bootstrap interval over prompts, "
    f"{estimates.RESAMPLES} resamples; ± is half of it."
)


def acceptance_markdown(found: Acceptance) -> list[str]:
    size = found.size
    rows = [
        [
            task,
            str(row.drafts),
            "one" if row.drafts == 1 else row.law,
            row.rule,
            row.measured.short(2, 100),
            *("-" if one is None else one.short(2, 100) for one in (row.expected, row.optimum)),
            "-" if row.reached is None else row.reached.text(2, 100),
        ]
        for task, of_task in found.rows.items()
        for row in of_task
    ]
    header = ("task", "drafts", "law", "rule", "accepted, %", "expected, %", "optimum, %", "of the optimum, %")
    return [
        f"{ABOUT} {size.prompts} prompts of each, {size.places} places in what the target writes behind each at "
        f"temperature 1, up to {size.tokens} tokens; at every place drafts for one position are drawn {size.turns} "
        f"times and verified {size.verified} times each. Accepted: one of the drafts is. Expected: the rule's closed "
        "form on the same rows. Optimum: the most that any rule could accept of drafts of that law (none is given for "
        "more than two drafts without replacement, which takes too long).",
        "",
        _INTERVALS,
        "",
        *markdown(header, rows),
        "",
        *claims.table(found.claims),
    ]


def passes_markdown(found: Passes) -> list[str]:
    size = found.size
    lines = [
        f"{ABOUT} {size.prompts} prompts of each, {size.places} places in what the target writes behind each, up to "
        f"{size.tokens} tokens. At temperature 1 drafts are drawn {size.turns} times at every place, and verified "
        f"{size.verified} times each; chains count by what their rule is expected to accept of them. A pass gives the "
        "accepted drafts and one token more.",
        "",
        "Tree 2, 1, ..: 2 children of the root and one of every other node, level by level up to the budget; tree "
        "4, 2, ..: likewise. Grown: where the draft model finds tokens probable. Best tree: the fixed form that is "
        f"best by how often each of {SIBLINGS} siblings was accepted at the same places (Sequoia); requests cannot ask "
        "for it.",
        "",
        _INTERVALS,
    ]
    for case, rows in found.rows.items():
        by_name: dict[tuple[str, str], dict[int, str]] = {}
        for row in rows:
            by_name.setdefault((row.drafts, row.rule), {})[row.budget] = row.tokens.short(3)
        header = ("drafts", "rule", *(f"{budget} drafted tokens" for budget in BUDGETS))
        table = [
            [*name, *(by_budget.get(budget, "a chain") for budget in BUDGETS)] for name, by_budget in by_name.items()
        ]
        lines += ["", f"Tokens per pass of the target, {case_name(case)}:", "", *markdown(header, table)]
    return [*lines, "", *claims.table(found.claims)]


def vocabulary_markdown(found: Vocabulary) -> list[str]:
    size, whole = found.size, found.parts[-1]
    tasks = list(whole.passes)
    rows = [
        [
            f"{part.tokens:,}",
            f"{100 * part.tokens / whole.tokens:.1f}",
            f"{100 * part.covered:.1f}",
            *(spread([1e6 * one for one in part.head[count]], 0) for count in spec_vocabulary.ROWS),
            *(spread([1e3 * one for one in part.draft[count]], 2) for count in spec_vocabulary.ROWS),
            *(part_figure.short(3) for part_figure in (estimates.mean(part.passes[task], seed=9) for task in tasks)),
            *(found.kept(part, task).text(1, 100) for task in tasks),
        ]
        for part in found.parts
    ]
    header = (
        "tokens",
        "of all, %",
        "of the text, %",
        *(f"head, {count} rows, µs" for count in spec_vocabulary.ROWS),
        *(f"chain, {count} requests, ms" for count in spec_vocabulary.ROWS),
        *(f"tokens per pass, {task}" for task in tasks),
        *(f"kept, {task}, %" for task in tasks),
    )
    large = [[f"{tokens:,}", spread([1e6 * one for one in seconds], 0)] for tokens, seconds in found.large.items()]
    return [
        "Parts of the draft model's vocabulary, ranked by the text that both models were trained on "
        f"({size.training_problems} of its word problems). Head: its matrix product and softmax, {size.rounds} rounds "
        f"of {size.calls} calls, median (lowest-highest) over rounds. Chain: the draft model writes "
        f"{spec_vocabulary.LENGTH} tokens. Tokens per pass: block verification of such chains at temperature 1, "
        f"{size.prompts} prompts of each task, {size.places} places, {size.turns} drafts at each. {ABOUT}",
        "",
        _INTERVALS,
        "",
        *markdown(header, rows),
        "",
        f"A made-up head of width {size.large[1]}, one row:",
        "",
        *markdown(("tokens", "head, µs"), large),
        "",
        *claims.table(found.claims),
    ]


def acceptance_json(found: Acceptance) -> dict[str, Any]:
    return {
        "size": vars(found.size),
        "interval": _interval(),
        "tasks": {task: [_figures(vars(row)) for row in rows] for task, rows in found.rows.items()},
        "claims": [claim.as_json() for claim in found.claims],
    }


def passes_json(found: Passes) -> dict[str, Any]:
    return {
        "size": vars(found.size),
        "interval": _interval(),
        "cases": [
            {
                **case_json(case),
                "forms": {str(budget): list(form) for budget, form in found.forms[case].items()},
                "rows": [
                    {"drafts": row.drafts, "rule": row.rule, "budget": row.budget, "tokens": row.tokens.as_json()}
                    for row in rows
                ],
            }
            for case, rows in found.rows.items()
        ],
        "claims": [claim.as_json() for claim in found.claims],
    }


def vocabulary_json(found: Vocabulary) -> dict[str, Any]:
    return {
        "size": vars(found.size),
        "interval": _interval(),
        "parts": [
            {
                "tokens": part.tokens,
                "covered": round(part.covered, 6),
                "head_seconds": _by_count(part.head),
                "draft_seconds": _by_count(part.draft),
                "passes": {task: estimates.mean(own, seed=9).as_json() for task, own in part.passes.items()},
                "kept": {task: found.kept(part, task).as_json() for task in part.passes},
            }
            for part in found.parts
        ],
        "large_head_seconds": _by_count(found.large),
        "claims": [claim.as_json() for claim in found.claims],
    }


def _figures(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one.as_json() if isinstance(one, Figure) else one for name, one in values.items()}


def _by_count(values: Mapping[int, Sequence[float]]) -> dict[str, list[float]]:
    return {str(count): rounded(own, 8) for count, own in values.items()}


def _interval() -> dict[str, Any]:
    return {"kind": "percentile bootstrap", "level": estimates.LEVEL, "resamples": estimates.RESAMPLES}
