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
        "Time of all cores per token, by process; more processes than one work side by side.",
        "",
        *markdown(("at once", "", "process", "ms per token"), list(_shares(costs, "processor_ms"))),
        "",
        "Time that the torch runner's steps take per token, by part.",
        "",
        *markdown(("at once", "", "part", "ms per token"), list(_shares(costs, "step_ms"))),
        "",
        *claims.table(costs.claims),
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


def _shares(costs: Costs, field: str) -> Iterator[list[str]]:
    """A row for each that takes any time."""
    for at_once, timings in costs.timings.items():
        for way, timing in timings.items():
            shares: list[dict[str, float]] = getattr(timing, field)
            for name, ms in _medians(shares).items():
                if ms >= 0.001:
                    yield [str(at_once), way, name or _SERVER, f"{ms:.3f}"]


def _medians(shares: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Over rounds, by name."""
    names = dict.fromkeys(name for one in shares for name in one)
    return {name: round(statistics.median(one.get(name, 0.0) for one in shares), 6) for name in names}
