"""Markdown and JSON of the times that `bench spec` has measured."""

from __future__ import annotations

from typing import Any

from bench import claims, spec_overhead
from bench.spec_load import Throughput
from bench.spec_overhead import Overhead
from bench.spec_speed import Speed
from bench.spec_texts import ABOUT, case_json, case_name
from bench.spec_ways import PLAIN
from bench.tables import markdown, rounded, spread
from spec_decode.statistics import SpecStatistics

_MEASURED_IN_PROCESS = (
    "Requests go to the runner in this process, without HTTP around it. All ways take turns; ratios are within a round."
)
_HEADER = ("task", "way", "tokens per second", "times plain", "tokens per step", "drafted", "accepted, %")


def speed_markdown(speed: Speed) -> list[str]:
    size = speed.size
    rows = []
    for case, timings in speed.timings.items():
        for way, timing in timings.items():
            times = "" if way == PLAIN else spread(speed.ratios(case, way), 2)
            per_second = spread([1 / one for one in timing.seconds], 0)
            rows.append([case_name(case), way, per_second, times, *_done(timing.done, way)])
    return [
        f"One request after the other. {ABOUT} {size.counts[0]} prompts of code, {size.tokens[0]} tokens behind "
        f"each; {size.counts[1]} word problems, up to {size.tokens[1]} tokens. {size.rounds} rounds after one to warm "
        f"up, which also fills the prefix cache. {_MEASURED_IN_PROCESS} Median (lowest-highest) over rounds.",
        "",
        "A number behind a rule is the length of its chains; auto: the controller decides. Drafted: nodes per step. At "
        "temperature 0 all rules accept the same. The best is named by the same rounds that it is judged by.",
        "",
        *markdown(_HEADER, rows),
        "",
        *claims.table(speed.claims),
    ]


def load_markdown(measured: Throughput) -> list[str]:
    size = measured.size
    rows = []
    for case, rates in measured.rates.items():
        for way, own in rates.items():
            times = "" if way == PLAIN else spread(measured.ratios(case, way), 2)
            rows.append([case_name(case), way, spread(own.per_second, 0), times, *_done(own.done, way)])
    return [
        f"{size.at_once} requests at once, {size.requests} a round; {size.tokens} tokens each, for code from two "
        f"thirds to four thirds of that, for word problems at most. {ABOUT} "
        f"{size.rounds} rounds after one to warm up, which also fills the prefix cache. {_MEASURED_IN_PROCESS} Median "
        "(lowest-highest) over rounds.",
        "",
        *markdown(_HEADER, rows),
        "",
        *claims.table(measured.claims),
    ]


def overhead_markdown(measured: Overhead) -> list[str]:
    size = measured.size
    parts = list(dict.fromkeys(part for of_way in measured.parts.values() for part in of_way))
    rows = [
        [
            way,
            spread(measured.step_ms[way], 2),
            spread([100 * one for one in measured.other(way)], 1),
            *(spread([100 * one for one in of_way[part]], 1) if part in of_way else "-" for part in parts),
        ]
        for way, of_way in measured.parts.items()
    ]
    return [
        f"{spec_overhead.AT_ONCE} requests at once, {size.tokens} tokens of code each at temperature 1, {size.rounds} "
        "rounds after one to warm up. Shares of the engine's steps, median (lowest-highest) over rounds; forward: "
        "passes of both models, draft: what else drafting takes, and passes inside of scripts that draft whole chains. "
        f"{_MEASURED_IN_PROCESS}",
        "",
        *markdown(("way", "step, ms", "not forward, %", *(f"{part}, %" for part in parts)), rows),
        "",
        *claims.table(measured.claims),
    ]


def speed_json(speed: Speed) -> dict[str, Any]:
    return {
        "size": {name: value for name, value in vars(speed.size).items() if name != "ways"},
        "cases": [
            {
                **case_json(case),
                "ways": {
                    way: {"seconds_per_token": rounded(timing.seconds), **timing.done.report("detailed")}
                    for way, timing in timings.items()
                },
            }
            for case, timings in speed.timings.items()
        ],
        "claims": [claim.as_json() for claim in speed.claims],
    }


def load_json(measured: Throughput) -> dict[str, Any]:
    return {
        "size": {name: value for name, value in vars(measured.size).items() if name != "ways"},
        "cases": [
            {
                **case_json(case),
                "ways": {
                    way: {"tokens_per_second": rounded(own.per_second, 2), **own.done.report("detailed")}
                    for way, own in rates.items()
                },
            }
            for case, rates in measured.rates.items()
        ],
        "claims": [claim.as_json() for claim in measured.claims],
    }


def overhead_json(measured: Overhead) -> dict[str, Any]:
    return {
        "size": vars(measured.size),
        "step_ms": {way: rounded(own, 4) for way, own in measured.step_ms.items()},
        "shares": {way: {part: rounded(own) for part, own in of_way.items()} for way, of_way in measured.parts.items()},
        "claims": [claim.as_json() for claim in measured.claims],
    }


def _done(done: SpecStatistics, way: str) -> list[str]:
    """Tokens per step, nodes per step, share of nodes that were accepted."""
    if way == PLAIN or not done.steps:
        return ["", "", ""]
    accepted = f"{100 * done.accepted / done.drafted:.1f}" if done.drafted else "-"
    return [f"{done.emitted / done.steps:.2f}", f"{done.drafted / done.steps:.2f}", accepted]
