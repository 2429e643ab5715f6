"""The ways to speculate that `bench spec` compares, as requests name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.sampler_runs import Failed
from engine.runners.base import Runner
from samplers.chain import Chain
from spec_decode.contract import DRAFT_SOURCES
from spec_decode.facts import SpecFacts, sampler_class
from spec_decode.read import read_spec
from spec_decode.request import SpecRequest
from spec_decode.statistics import SpecStatistics

PLAIN, AUTO = "plain", "auto"
LOOKED_UP, DRAWN = "looked up", "draft model"
LENGTHS = (2, 4, 8, 16)
# match first: at temperature 0 all rules come to it, and the first of ways that are the same is kept
RULES = ("match", "block", "token")
TREES = ("match", "traversal", "hu", "rrs")
NODES, DEPTH = 8, 4  # of trees


@dataclass(frozen=True)
class Way:
    """One way."""

    name: str
    value: Any  # `spec_decode` of its requests
    kind: str = ""  # plain, auto, looked up or draft model

    def request(self, runner: Runner, chain: Chain) -> SpecRequest | None:
        """Resolved; None: plain decoding. Raises SamplerError."""
        facts = SpecFacts(runner.offer, greedy=chain.greedy, sampler=sampler_class(chain))
        found = read_spec(self.value, facts)
        return found if isinstance(found, SpecRequest) else None


def _drawn(name: str, **fields: Any) -> Way:
    return Way(name, {"draft": "draft_model", **fields}, DRAWN)


def _chains() -> list[Way]:
    lengths = [*LENGTHS, AUTO]
    return [_drawn(f"{rule}, {length}", verifier=rule, num_tokens=length) for rule in RULES for length in lengths]


def _trees() -> list[Way]:
    """All as deep as they are, whatever the controller thinks of it."""
    fields = {"num_tokens": DEPTH, "tree": {"shape": "static", "max_nodes": NODES, "depth": DEPTH}}
    several = [_drawn(f"{rule}, tree of {NODES}", verifier=rule, num_drafts=2, **fields) for rule in TREES]
    sequences = {"shape": "sequences", "max_nodes": NODES, "depth": DEPTH}
    grown = {"shape": "dynamic", "max_nodes": NODES, "depth": DEPTH, "top_k": 2}
    return [
        *several,
        _drawn(f"kseq, 2 sequences of {DEPTH}", verifier="kseq", num_tokens=DEPTH, num_drafts=2, tree=sequences),
        _drawn(f"traversal, grown tree of {NODES}", num_tokens=DEPTH, tree=grown),
    ]


WAYS = (
    Way(PLAIN, False, PLAIN),
    Way(AUTO, AUTO, AUTO),
    Way("prompt lookup", {"draft": "prompt_lookup"}, LOOKED_UP),
    Way("suffix", {"draft": "suffix"}, LOOKED_UP),
    *_chains(),
    *_trees(),
)


def named(*names: str) -> tuple[Way, ...]:
    by_name = {way.name: way for way in WAYS}
    return tuple(by_name[name] for name in names)


def require_drafts(name: str, request: SpecRequest | None, done: SpecStatistics) -> None:
    """A drafter that fails is switched off, and the engine goes on without it. Raises Failed for a way that has drafted
    nothing although it says how many tokens it wants of a draft model."""
    asked = request is not None and request.num_tokens is not None and DRAFT_SOURCES.get(request.draft).draws
    if asked and not done.drafted:
        raise Failed(f"'{name}' has drafted nothing")


def distinct(ways: tuple[Way, ...], runner: Runner, chain: Chain) -> dict[str, SpecRequest | None]:
    """Name -> request; of ways that come to the same under this chain the first. At temperature 0 all rules do."""
    found: dict[str, SpecRequest | None] = {}
    for way in ways:
        request = way.request(runner, chain)
        if request not in found.values():
            found[way.name] = request
    return found
