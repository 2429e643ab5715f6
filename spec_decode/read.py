"""Reads the `spec_decode` field of a request (spec_decode.md section 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import spec_decode.verify  # noqa: F401  registers the rules
from samplers.contract import SamplerError
from spec_decode.combinations import check
from spec_decode.engine_wide import read_engine_wide
from spec_decode.facts import SamplerClass, SpecError, SpecFacts
from spec_decode.policy import UNAVAILABLE, choose_sources, resolve
from spec_decode.request import AUTO, Plain, SpecRequest
from spec_decode.wish import PATH, read_wish

INCOMPATIBLE = "sampler_incompatible"


def read_spec(value: Any, facts: SpecFacts) -> SpecRequest | Plain:
    """value: false, "auto" (None is the same) or an object. "auto" never fails, it falls back to plain decoding and
    says why. Raises SamplerError, in some cases a SpecError with a code, with the dotted path of the field."""
    if not (value is None or value is False or value == AUTO or isinstance(value, Mapping)):
        raise SamplerError(f"'{PATH}' must be false, \"{AUTO}\" or an object", PATH)
    if facts.offer.engine_wide is not None:
        return read_engine_wide(value, facts.offer.engine_wide, facts)
    if value is False:
        return Plain()
    if value is None or value == AUTO:
        return _automatic(facts)
    wish = read_wish(value, facts.offer.sources)
    if facts.excluded:
        raise SpecError(f"'{PATH}' and '{facts.excluded}' exclude each other", PATH)
    if facts.sampler is SamplerClass.NONE:
        raise SpecError(f"'{PATH}': the request's sampler does not choose one next token after the other", PATH)
    sources = choose_sources(wish, facts)
    check(wish, sources[0], facts)
    return resolve(wish, sources, facts)


def _automatic(facts: SpecFacts) -> SpecRequest | Plain:
    if facts.excluded:
        return Plain(facts.excluded)
    if facts.sampler is SamplerClass.NONE:
        return Plain(INCOMPATIBLE)
    if not facts.offer.sources:
        return Plain(UNAVAILABLE)
    wish = read_wish({}, facts.offer.sources)
    return resolve(wish, choose_sources(wish, facts), facts)
