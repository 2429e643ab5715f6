"""What "auto" stands for: the source, the rule, the law of siblings and their noise (spec_decode.md 4.8).

Exact rules only. Where drafts are not drawn `match` is as good as any, and it is the only one whose tokens depend on
nothing but the seed; chains are verified as blocks; several drafts by the best rule for their law.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spec_decode.contract import DraftSource
from spec_decode.facts import SamplerClass, SpecError, SpecFacts
from spec_decode.request import AUTO, SourceUse, SpecRequest, TreeShape
from spec_decode.wish import PATH, Wish, values_of

UNAVAILABLE = "draft_unavailable"
DEEPEST = 16  # level that `tree.depth` may name


def choose_sources(wish: Wish, facts: SpecFacts) -> tuple[DraftSource, ...]:
    """The one that is named, or the first that can do what the rest of the wish says; if that one draws chains, the
    first that looks them up as well, for where it finds something that is free. Raises SpecError."""
    path = f"{PATH}.draft"
    if not facts.offer.sources:
        raise SpecError(f"'{path}': no source of drafts is loaded", path, UNAVAILABLE)
    if wish.draft != AUTO:
        for source in facts.offer.sources:
            if source.name == wish.draft:
                return (source,)
        known = ", ".join(source.name for source in facts.offer.sources)
        raise SpecError(f"'{path}': {wish.draft} is not loaded here; loaded: {known}", path, UNAVAILABLE)
    fitting = (one for one in facts.offer.sources if one.field in (wish.options or [one.field]))
    able = (one for one in fitting if one.branches or not wish.several)
    first = next(able, facts.offer.sources[0])
    free = [one for one in facts.offer.sources if not one.draws]
    mixes = first.draws and wish.shape == "chain" and not wish.several and not wish.options
    return (first, *free[:1]) if mixes and wish.num_tokens is None else (first,)


def resolve(wish: Wish, sources: Sequence[DraftSource], facts: SpecFacts) -> SpecRequest:
    """Of a wish without objections (combinations.py). Raises SamplerError for the options of a source."""
    source, *_ = sources
    drawn = source.draws and (not facts.greedy if wish.draft_temperature is None else wish.draft_temperature > 0)
    law = _law(wish, source, facts, drawn)
    levels = {} if wish.num_tokens is None else {"depth": min(wish.num_tokens, DEEPEST)}
    tree = TreeShape(wish.shape) if wish.shape == "chain" else TreeShape(**{"shape": wish.shape, **levels, **wish.tree})
    depth = min(tree.depth, wish.num_tokens or tree.depth, facts.offer.max_depth)
    verifier, values = _rule(wish, facts, law, drawn, depth)
    if wish.draft_noise == "shared" and verifier != "match":
        path = f"{PATH}.draft_noise"
        raise SpecError(f"'{path}': only match is unbiased with it, but the verifier is {verifier}", path)
    shared = verifier == "match" and drawn and wish.draft_noise != "independent"
    return SpecRequest(
        sources=tuple(_use(wish, one, facts) for one in sources),
        verifier=verifier,
        num_tokens=None if wish.num_tokens is None else min(wish.num_tokens, facts.offer.max_depth),
        num_drafts=wish.num_drafts,
        sibling_law=law,
        tree=tree,
        draft_temperature=wish.draft_temperature,
        draft_noise="shared" if shared else "independent",
        draft_vocab=wish.draft_vocab,
        verifier_values=values,
        stats=wish.stats,
    )


def _use(wish: Wish, source: DraftSource, facts: SpecFacts) -> SourceUse:
    options = values_of(source.params, wish.options.get(source.field, {}), f"{PATH}.{source.field}")
    source.check(options, f"{PATH}.{source.field}")
    if options.get("scope") == "tenant" and not facts.past_outputs:
        path = f"{PATH}.{source.field}.scope"
        raise SpecError(f"'{path}': this server does not look at past outputs for this request", path)
    return SourceUse(source.name, options, source.field)


def _law(wish: Wish, source: DraftSource, facts: SpecFacts, drawn: bool) -> str:
    """Of siblings."""
    if not wish.several:
        return AUTO
    if not drawn:
        return "topk"
    if wish.sibling_law != AUTO:
        return wish.sibling_law
    independent = wish.verifier == AUTO and wish.shape == "sequences" and wish.lossy is None and not _matches(facts)
    if independent or wish.verifier == "kseq":
        return "iid"
    return "hu" if source.ranks else "swor"


def _rule(wish: Wish, facts: SpecFacts, law: str, drawn: bool, depth: int) -> tuple[str, Mapping[str, Any]]:
    """Its name and parameters. At temperature 0 every rule accepts what `match` does."""
    if facts.greedy:
        return "match", {}
    if wish.lossy is not None:
        return wish.lossy
    if wish.verifier != AUTO:
        return wish.verifier, {}
    if _matches(facts) or not drawn or law == "topk":
        return "match", {}
    if wish.shape == "chain":
        return "block", {}
    if wish.shape == "sequences" and law == "iid":
        return "kseq", {}
    return ("hu" if depth == 1 and law == "hu" else "traversal"), {}


def _matches(facts: SpecFacts) -> bool:
    """Whether the request wants `match` whatever its drafts are."""
    return facts.greedy or facts.seeded or facts.sampler is SamplerClass.OWN_DRAW
