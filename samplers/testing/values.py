"""Values to check a sampler at, found in what its parameters say about themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from samplers.chain import INTERNAL
from samplers.contract import Draw, Param, SamplerError, Stage
from samplers.model_facts import ModelFacts
from samplers.testing.world import World

MOST = 8  # sets of values


def discover(sampler: Stage | Draw, model: Callable[[World], ModelFacts]) -> list[dict[str, Any]]:
    """The defaults, then one parameter at a time elsewhere in its range; only what is allowed and not neutral."""
    optional: Mapping[str, Any] = getattr(sampler, "structured_defaults", {})
    if required := [field for field in getattr(sampler, "structured", ()) if field not in optional]:
        raise AssertionError(f"'{sampler.name}': give values for {', '.join(required)}")
    facts = model(World.plain(8))
    base = _active(sampler)
    found: list[dict[str, Any]] = []
    candidates = [base, *({**base, p.name: value} for p in sampler.params for value in some(p))]
    for values in candidates:
        try:
            for param in sampler.params:
                param.check(values[param.name], param.name)
            sampler.check({**optional, **values}, facts)
        except SamplerError:
            continue
        neutral = getattr(sampler, "is_neutral", lambda _: False)(values) and sampler.name not in INTERNAL
        if not neutral and values not in found:
            found.append(values)
    step = max(1, math.ceil((len(found) - 1) / (MOST - 1)))
    return found[:1] + found[1::step]


def _active(sampler: Stage | Draw) -> dict[str, Any]:
    """The values of a sampler named without any; where these are neutral, others near them that are not."""
    base = {param.name: param.when_named for param in sampler.params}
    is_neutral = getattr(sampler, "is_neutral", lambda _: False)
    if is_neutral(base):
        for param in sampler.params:
            for value in some(param):
                if not is_neutral({**base, param.name: value}):
                    return {**base, param.name: value}
    return base


def some(param: Param) -> list[Any]:
    """Values of a parameter: low, middling and high ones of its range, away from its ends."""
    if param.kind is bool:
        return [False, True]
    if param.kind is str:
        return list(param.choices)
    low = param.low if param.low > -math.inf else min(-4.0, param.high - 4.0)
    high = param.high if param.high < math.inf else max(low, 0.0) + 4.0
    high = min(high, max(low, 0.0) + 64.0)
    points = [low + share * (high - low) for share in (0.01, 0.1, 0.5, 0.9)]
    if param.kind is int:
        points = [low + 1, low + 2, low + 5, high]
    return list(dict.fromkeys(param.kind(point) for point in points))
