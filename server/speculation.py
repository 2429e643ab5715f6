"""The field `spec_decode`: read with what the rest of the request says, and shown again with what was done.

What its keys mean is decided in `spec_decode`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from samplers.chain import Chain
from spec_decode.facts import SpecFacts, sampler_class
from spec_decode.read import read_spec
from spec_decode.request import AUTO, Plain, SpecRequest
from spec_decode.statistics import SpecStatistics

# what a response says about speculation; a request that repeats it means the speculation
_FOUND = frozenset(
    (
        "steps", "drafted", "accepted", "mean_emitted", "sources", "acceptance_by_offset", "draft_lengths",
        "seed_stable", "fallback_reason",
    )
)  # fmt: skip


def read_speculation(
    value: Any, standing: SpecFacts, chain: Chain, *, seeded: bool, excluded: str = ""
) -> SpecRequest | Plain:
    """standing: what is known before the request's fields are; excluded: as in SpecFacts. Raises SamplerError."""
    facts = replace(standing, excluded=excluded, greedy=chain.greedy, seeded=seeded, sampler=sampler_class(chain))
    return read_spec(wanted(value), facts)


def wanted(value: Any) -> Any:
    """The field without what a response says became of it. Where it says nothing else, neither does the request."""
    if not isinstance(value, Mapping):
        return value
    left = {
        name: part for name, part in value.items() if name not in _FOUND and not (name == "lossy" and part is False)
    }
    return AUTO if value and not left else left


def report(asked: SpecRequest | Plain, done: SpecStatistics) -> bool | dict[str, Any]:
    """What the answer says: finite JSON. done: over all its choices."""
    if isinstance(asked, Plain):
        return False if asked.fallback_reason is None else {"fallback_reason": asked.fallback_reason}
    lossy = {} if asked.lossless else {asked.verifier: dict(asked.verifier_values)}
    several = [one.name for one in asked.sources] if len(asked.sources) > 1 else []
    return {
        **asked.report(),
        **lossy,
        **done.report(asked.stats, several),
        "lossy": not asked.lossless,
        "seed_stable": asked.seed_stable,
    }
