"""Markdown and JSON of what `bench voting` has measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bench import claims, estimates
from bench.estimates import Figure
from bench.tables import markdown, spread
from bench.vote_cost import PLAIN, SAMPLES, Cost
from bench.vote_draws import NAMES, Draws
from bench.vote_rules import KS, METHODS, MOST, SC, WINDOW, Rules, needed_text
from bench.vote_samples import ATTEMPTS, GROUP, TEMPERATURE, TOP, Size
from bench.vote_special import Special
from bench.vote_stopping import TOLERATED, Stopping

_INTERVALS = (
    f"Parentheses hold the ends of the {estimates.LEVEL:.0%} percentile-bootstrap interval over problems, "
    f"{estimates.RESAMPLES} resamples; ± is half of it. A claim is reproduced or contradicted where the whole interval "
    "says so."
)


def _samples(size: Size) -> str:
    return (
        f"{size.problems} held-out word problems, temperature {TEMPERATURE:g}, up to {size.solution_tokens} tokens, "
        "answers after `####`."
    )


def rules_markdown(rules: Rules) -> list[str]:
    size = rules.size
    header = ("rule", *(f"K = {k}" for k in KS))
    accuracy = [
        [name, *(f"{100 * by_k[k]['accuracy']:.1f} ±{100 * by_k[k]['accuracy_std']:.1f}" for k in KS)]
        for name, by_k in rules.summaries.items()
    ]
    last = [
        [name, rules.accuracy[name][MOST].text(1, 100), rules.gain[name].text(1, 100), needed_text(rules.needed[name])]
        for name in rules.summaries
    ]
    measures = {
        measure: [
            [name, *(_number(by_k[k][measure], digits) for k in KS)]
            for name, by_k in rules.summaries.items()
            if by_k[MOST][measure] is not None
        ]
        for measure, digits in (("ece", 3), ("brier", 3))
    }
    return [
        f"{_samples(size)} {size.pool} independent samples each, of which K are taken in {size.repeats} orders, the "
        f"same for every problem and rule: with K = {MOST} two orders share half of their samples, which makes the "
        f"deviation of repeats too small. Completions of a problem: {rules.distinct:.1f} different ones among "
        f"{size.pool}, {rules.distinct_right:.1f} of them right.",
        "",
        f"deepconf and iew read the {TOP} most probable tokens. DeepConf's own window of 2048 tokens is longer than "
        f"any answer; window {WINDOW} is to an answer what 2048 are to a long chain. Best tenth: eta 10. bon by "
        "likelihood picks what ppl picks; softmax adds the paths' relative likelihoods, counting equal ones each "
        "time. joint: the probability of a path, not its mean per token. Equal paths apart: completions that are "
        "equal count each time, as if they were different paths.",
        "",
        f"Accuracy in %, mean and population standard deviation over {size.repeats} orders:",
        "",
        *markdown(header, accuracy),
        "",
        _INTERVALS,
        "",
        *markdown(
            (
                "rule",
                f"accuracy, K = {MOST}, %",
                f"more than {SC.name}, points",
                f"least K as accurate as {SC.name} with {MOST}",
            ),
            last,
        ),
        "",
        "Expected calibration error of the reported confidence, 10 bins, mean over orders (rules without confidence "
        "are left out; that of sc is a multiple of one over the samples that vote):",
        "",
        *markdown(header, measures["ece"]),
        "",
        "Brier score:",
        "",
        *markdown(header, measures["brier"]),
        "",
        *claims.table(rules.claims),
    ]


def special_markdown(special: Special) -> list[str]:
    size = special.size
    rows = [
        [
            row.method,
            str(row.k),
            str(row.problems),
            row.accuracy.short(1, 100),
            row.beside,
            row.other.short(1, 100),
            row.gain.text(1, 100),
            f"{100 * row.usable:.1f}",
            "" if row.saved is None else row.saved.text(1, 100),
        ]
        for row in special.rows
    ]
    header = (
        "rule",
        "K",
        "problems",
        "accuracy, %",
        "beside",
        "its accuracy, %",
        "gain, points",
        "usable, %",
        "saved, %",
    )
    return [
        "Rules that need more than samples of the plain prompt, on fewer problems. verbalised: the prompt ends in an "
        "instruction to state a confidence; usable are samples with an answer and one. usc: the model itself is the "
        "judge; usable are replies that name a response, otherwise the majority decides. iew, sequential: chains of "
        f"{ATTEMPTS} attempts, {size.chains} per problem, each of which sees the one before; usable are attempts with "
        "an answer. deepconf online: replayed from samples drawn in full, with a warm-up of 16; usable are samples "
        "that were not aborted, saved are tokens, of those of all samples.",
        "",
        _INTERVALS,
        "",
        *markdown(header, rows),
        "",
        *claims.table(special.claims),
    ]


def stopping_markdown(stopping: Stopping) -> list[str]:
    rows = [
        [
            name + (" (saves most)" if name == stopping.best else ""),
            row.saved.text(1, 100),
            row.lost.text(2, 100),
            row.same.text(1, 100),
            row.fired.text(1, 100),
        ]
        for name, row in stopping.rows.items()
    ]
    return [
        f"{_samples(stopping.size)} Self-consistency over at most {stopping.cap} samples in {stopping.size.repeats} "
        f"orders; accuracy of all {stopping.cap}: {stopping.full.text(1, 100)} %. Saved: share of the samples. Lost: "
        f"points of accuracy. Saves most: of the settings whose interval of lost points ends at {100 * TOLERATED:g} or "
        "below.",
        "",
        _INTERVALS,
        "",
        *markdown(("rule", "saved, %", "lost, points", "same answer, %", "stopped early, %"), rows),
        "",
        *claims.table(stopping.claims),
    ]


def draws_markdown(draws: Draws) -> list[str]:
    size = draws.size
    rows = [
        [
            str(k),
            *(one.short(1, 100) for one in row.accuracy[:2]),
            row.accuracy[2].text(1, 100),
            *(one.text(1, 100) for one in row.deviation),
            row.ratio.text(2),
            *(one.short(1, 100) for one in row.covered[:2]),
            row.covered[2].text(1, 100),
        ]
        for k, row in draws.rows.items()
    ]
    header = (
        "K",
        *(f"accuracy, {name}, %" for name in NAMES),
        "gain, points",
        *(f"deviation, {name}, points" for name in NAMES),
        "ratio",
        *(f"covered, {name}, %" for name in NAMES),
        "gain, points",
    )
    points = [
        [
            str(one.k),
            f"{100 * one.value:.2f}",
            f"{100 * (one.value - draws.law.at(one.k)):+.2f}" if draws.law else "-",
        ]
        for one in draws.coverage
    ]
    law = (
        "A power law could not be fitted."
        if draws.law is None
        else f"Fitted power law: exp({draws.law.a:.4f} k^{draws.law.b:.3f})."
    )
    return [
        f"{_samples(size)} Self-consistency over K samples. Of each problem "
        f"{size.groups} groups of {GROUP} were drawn independently and as many by arithmetic sampling; requests with "
        f"K samples are parts of a group: K in a row, or every ({GROUP}/K)-th code, which is an arithmetic group of "
        "K. Deviation: of one problem's credit from request to request, root mean square over problems; only "
        "requests of different groups are compared. Covered: some sample of the request is right.",
        "",
        _INTERVALS,
        "",
        *markdown(header, rows),
        "",
        f"Coverage of independent samples over all problems, the unbiased pass@k of {size.pool}. {law}",
        "",
        *markdown(("k", "coverage, %", "minus the law, points"), points),
        "",
        *claims.table(draws.claims),
    ]


def cost_markdown(cost: Cost) -> list[str]:
    size = cost.size
    rows = [
        [
            name,
            spread([1000 * one / size.problems for one in seconds], 1),
            "" if name == PLAIN else spread(cost.ratios(name), 2),
            str(cost.tokens[name]),
        ]
        for name, seconds in cost.seconds.items()
    ]
    return [
        f"{SAMPLES} samples through HTTP, {size.problems} word problems one after the other, {size.rounds} rounds "
        "after one to warm up, all ways in turn in each round, in alternating order, with the same seeds. Median "
        "(lowest-highest) over rounds; ratios within a round. deepconf reads the 20 most probable tokens of every "
        "place; beta stops drawing where its rule fires.",
        "",
        *markdown(("way", "ms per prompt", f"over {PLAIN}", "tokens"), rows),
        "",
        *claims.table(cost.claims),
    ]


def rules_json(rules: Rules) -> dict[str, Any]:
    return {
        **_header(rules.size),
        "methods": {method.name: {"rule": method.rule, "params": dict(method.params)} for method in METHODS},
        "results": {
            name: {
                str(k): {**summary, "accuracy_interval": rules.accuracy[name][k].as_json()}
                for k, summary in by_k.items()
            }
            for name, by_k in rules.summaries.items()
        },
        "gain": _figures(rules.gain),
        "needed": _figures(rules.needed),
        "completions": {"different": rules.distinct, "right": rules.distinct_right},
        "claims": [claim.as_json() for claim in rules.claims],
    }


def special_json(special: Special) -> dict[str, Any]:
    return {
        **_header(special.size),
        "rows": [{name: _plain(value) for name, value in vars(row).items()} for row in special.rows],
        "claims": [claim.as_json() for claim in special.claims],
    }


def stopping_json(stopping: Stopping) -> dict[str, Any]:
    return {
        **_header(stopping.size),
        "cap": stopping.cap,
        "full": stopping.full.as_json(),
        "rules": {name: _figures(vars(row)) for name, row in stopping.rows.items()},
        "tolerated": TOLERATED,
        "saves_most": stopping.best,
        "claims": [claim.as_json() for claim in stopping.claims],
    }


def draws_json(draws: Draws) -> dict[str, Any]:
    return {
        **_header(draws.size),
        "k": {str(k): {name: _plain(value) for name, value in vars(row).items()} for k, row in draws.rows.items()},
        "columns": [*NAMES, "difference"],
        "coverage": {str(one.k): {"pass_at_k": one.value, "interval": one.interval} for one in draws.coverage},
        "power_law": None if draws.law is None else draws.law._asdict(),
        "claims": [claim.as_json() for claim in draws.claims],
    }


def cost_json(cost: Cost) -> dict[str, Any]:
    return {
        "size": asdict(cost.size),
        "seconds": {name: [round(one, 6) for one in seconds] for name, seconds in cost.seconds.items()},
        "ratios": {name: [round(one, 4) for one in cost.ratios(name)] for name in cost.seconds},
        "tokens": cost.tokens,
        "claims": [claim.as_json() for claim in cost.claims],
    }


def _header(size: Size) -> dict[str, Any]:
    return {
        "size": asdict(size),
        "temperature": TEMPERATURE,
        "interval": {"kind": "percentile bootstrap", "level": estimates.LEVEL, "resamples": estimates.RESAMPLES},
    }


def _figures(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {name: one.as_json() for name, one in figures.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Figure):
        return value.as_json()
    return [one.as_json() for one in value] if isinstance(value, tuple) else value


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
