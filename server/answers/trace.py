"""What the chain did, on the wire: `sampler_trace`, one object per generated token.

Numbers are finite, those that describe rows have six significant digits. Knows tokens and traces, not requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samplers.trace import StageTrace, TokenTrace
from server.answers.logprobs import TokenNames

CANDIDATES = 5  # listed from the model's row and from the last one: at most twice as many per stage


def sampler_trace(
    token_ids: Sequence[int], traces: Sequence[TokenTrace | None], names: TokenNames
) -> list[dict[str, Any]]:
    """One object per token; of a token that was not drawn by the chain only what it is."""
    return [
        {"id": token, "token": names(token)} | (_token(trace, names) if trace is not None else {"stages": []})
        for token, trace in zip(token_ids, traces, strict=True)
    ]


def _token(trace: TokenTrace, names: TokenNames) -> dict[str, Any]:
    draw = trace.draw
    return {
        "probability": _short(trace.probability),
        "possible": trace.possible,
        "entropy": _short(trace.entropy),
        "candidates": [
            {"id": token, "token": names(token), "probability": _short(chance)} for token, chance in trace.candidates
        ],
        "stages": [_stage(stage, names) for stage in trace.stages],
        "draw": {
            "name": draw.name,
            "random": list(draw.random),
            "interval": None if draw.interval is None else list(draw.interval),
        },
    }


def _stage(stage: StageTrace, names: TokenNames) -> dict[str, Any]:
    return {
        "name": stage.name,
        "possible": list(stage.possible),
        "removed_mass": _short(stage.removed_mass),
        "entropy": list(map(_short, stage.entropy)),
        "drawn": list(map(_short, stage.drawn)),
        "candidates": [
            {"id": one.token, "token": names(one.token), "before": _short(one.before), "after": _short(one.after)}
            for one in stage.candidates
        ],
        "random": list(stage.random),
    }


def _short(number: float) -> float:
    return float(f"{number:.6g}")
