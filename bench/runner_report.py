"""Writes down what `bench runners` has measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench import claims
from bench.runner_costs import PROMPT_TOKENS, Costs
from bench.runner_ways import BATCH_TOKENS, CHAIN, CONTEXT, KV_BYTES, PAGE, SEQUENCES, VLLM, WAYS
from bench.tables import markdown, quartiles, rounded

_SERVER = "the server itself"
_LEAST_MS = 0.0005  # what takes less in all rows has no column


def costs_markdown(costs: Costs) -> list[str]:
    size = costs.size
    chain = next(way for way in WAYS if way.name == CHAIN)
    settings = ", ".join(f"`{name}`: `{value}`" for name, value in chain.fields.items())
    return [
        costs.conditions,
        "",
        f"Every request has a prompt of about {PROMPT_TOKENS} tokens of its own and {size.tokens} tokens to generate, "
        f"streamed, at temperature 1; {_asked(size.loads)}. {size.rounds} rounds after one to warm up; median "
        f"(quartiles) over rounds. Context {CONTEXT}, {SEQUENCES} sequences, float32, {KV_BYTES // 2**20} MiB of keys "
        f"and values; over vLLM pages of {PAGE} tokens and {BATCH_TOKENS} tokens per step. Our samplers: {settings}, "
        "and a seed.",
        "",
        *markdown(_HEADER, list(_rows(costs))),
        "",
        *markdown(
            ("start", "ready, s", "first token, s"),
            [[name, quartiles(own.ready_s, 1), quartiles(own.answered_s, 1)] for name, own in costs.starts.items()],
        ),
        "",
        "Time of the processor per token, by process, in ms; processes work side by side.",
        "",
        *_shares({load: {way: one.processor_ms for way, one in own.items()} for load, own in costs.timings.items()}),
        "",
        "Steps of the torch runner's engine, by part, in ms per token; those of vLLM's engine do not say it.",
        "",
        *_shares({load: {way: one.step_ms for way, one in own.items()} for load, own in costs.timings.items()}),
        "",
        *(_profiles(costs) if costs.profiles else []),
        *claims.table(costs.claims),
    ]


def _profiles(costs: Costs) -> list[str]:
    rows = [
        [str(load), way, one.process or _SERVER, f"`{one.function}`", f"{100 * one.own:.1f}", f"{100 * one.below:.1f}"]
        for (load, way), profile in costs.profiles.items()
        for one in profile
    ]
    return [
        "Functions in which most time is spent, of Python's stacks as py-spy samples them: shares of the samples of "
        "all processes of the server that show work, in which the function itself was at work or called what was.",
        "",
        *markdown(("at once", "", "process", "function", "itself, %", "with what it calls, %"), rows),
        "",
    ]


_HEADER = ("at once", "", "tokens/s", f"over {VLLM}", "first token, ms", f"over {VLLM}")


def costs_json(costs: Costs) -> dict[str, Any]:
    return {
        "conditions": costs.conditions,
        "size": {**vars(costs.size), "loads": [list(load) for load in costs.size.loads.items()]},
        "loads": [
            {
                "at_once": at_once,
                "ways": {
                    way: {
                        "tokens_per_s": rounded(own.tokens_per_s, 2),
                        "first_s": rounded(own.first_s),
                        "processor_ms": _medians(own.processor_ms),
                        "step_ms": _medians(own.step_ms),
                    }
                    for way, own in timings.items()
                },
            }
            for at_once, timings in costs.timings.items()
        ],
        "starts": {
            name: {"ready_s": rounded(own.ready_s, 3), "answered_s": rounded(own.answered_s, 3)}
            for name, own in costs.starts.items()
        },
        "profiles": [
            {"at_once": load, "way": way, "functions": [vars(one) for one in profile]}
            for (load, way), profile in costs.profiles.items()
        ],
        "claims": [claim.as_json() for claim in costs.claims],
    }


def _asked(loads: Mapping[int, int]) -> str:
    return ", ".join(f"{count} requests a round with {at_once} at once" for at_once, count in loads.items())


def _rows(costs: Costs) -> Iterator[list[str]]:
    for at_once, timings in costs.timings.items():
        for way, own in timings.items():
            alone = way == VLLM
            yield [
                str(at_once),
                way,
                quartiles(own.tokens_per_s, 0),
                "1" if alone else quartiles(costs.faster(at_once, way), 2),
                quartiles([1000 * one for one in own.first_s], 1),
                "1" if alone else quartiles(costs.later(at_once, way), 2),
            ]


def _shares(shares: Mapping[int, Mapping[str, Sequence[Mapping[str, float]]]]) -> list[str]:
    """A table with a row for each load and way (load -> way -> by round, ms by name), and a column for each name."""
    medians = {(load, way): _medians(own) for load, ways in shares.items() for way, own in ways.items() if any(own)}
    names = [name for name in dict.fromkeys(n for own in medians.values() for n in own) if _counts(medians, name)]
    rows = [
        [str(load), way, *(f"{own[name]:.3f}" if name in own else "-" for name in names)]
        for (load, way), own in medians.items()
    ]
    return markdown(("at once", "", *(name or _SERVER for name in names)), rows)


def _counts(medians: Mapping[Any, Mapping[str, float]], name: str) -> bool:
    """Whether anything takes any time under this name."""
    return any(own.get(name, 0.0) >= _LEAST_MS for own in medians.values())


def _medians(shares: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Over rounds, by name."""
    names = dict.fromkeys(name for one in shares for name in one)
    return {name: round(statistics.median(one.get(name, 0.0) for one in shares), 6) for name in names}
