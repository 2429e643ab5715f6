"""Speculation that an engine does for all of its requests in the same way, as it was told at its start.

Requests may leave it open or say what is done anyway; nothing else can be honoured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import spec_decode.drafters  # noqa: F401  registers the sources
from spec_decode.contract import DRAFT_SOURCES
from spec_decode.facts import SamplerClass, SpecError, SpecFacts
from spec_decode.request import AUTO, SourceUse, SpecRequest
from spec_decode.wish import PATH, read_wish

_UNSUPPORTED = "unsupported_by_runner"
_ELSEWHERE = "this engine speculates in the same way for all requests; the torch runner lets each decide"


@dataclass(frozen=True)
class EngineWide:
    """How the engine speculates, always with one chain."""

    source: SourceUse
    num_tokens: int | None  # most tokens of a draft; None: it varies
    rule: str  # name of the rule where the engine draws the tokens; `match` where a seed decides them
    draft_temperature: float | None = None  # None: the request's own

    def resolved(self, facts: SpecFacts) -> SpecRequest:
        return SpecRequest(
            sources=(self.source,),
            verifier="match" if facts.greedy or facts.follows_seed else self.rule,
            num_tokens=self.num_tokens,
            draft_temperature=self.draft_temperature,
            # programs draw by requests of their own, whose drafts nobody adds up
            stats="none" if facts.sampler is SamplerClass.NONE else "summary",
        )


def read_engine_wide(value: Any, own: EngineWide, facts: SpecFacts) -> SpecRequest:
    """value: as for `read_spec`. Raises SamplerError."""
    resolved = own.resolved(facts)
    if value is None or value == AUTO:
        return resolved
    if value is False:
        raise SpecError(f"'{PATH}': {_ELSEWHERE}", PATH, _UNSUPPORTED)
    fields = [source for source in DRAFT_SOURCES if source.name == own.source.name]
    wish = read_wish(value, fields)
    _compare(value, {**resolved.report(), "lossy": None, "stats": wish.stats}, PATH)
    return resolved if facts.sampler is SamplerClass.NONE else replace(resolved, stats=wish.stats)


def _compare(given: Mapping[str, Any], done: Mapping[str, Any], path: str) -> None:
    """Raises SpecError for the first field that says something else than what is done."""
    for name, value in given.items():
        where, actual = f"{path}.{name}", done.get(name)
        if isinstance(value, Mapping) and isinstance(actual, Mapping):
            _compare(value, actual, where)
        elif value not in (actual, AUTO):
            known = "" if actual is None else f" with {actual!r}"
            raise SpecError(f"'{where}': {_ELSEWHERE}, here{known}", where, _UNSUPPORTED)
