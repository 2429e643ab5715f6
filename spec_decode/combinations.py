"""Which parts of a `spec_decode` object exclude each other, and what the rest of the request excludes.

An object is an instruction: whatever cannot be honoured is an error, nothing is quietly left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from spec_decode.contract import DraftSource
from spec_decode.facts import SamplerClass, SpecError, SpecFacts
from spec_decode.request import AUTO
from spec_decode.wish import PATH, Wish

_UNSUPPORTED = "unsupported_by_runner"
_CHAIN_RULES = ("token", "block")
_DRAWING_RULES = ("kseq", "hu")  # they are about drafts of which one at least is drawn


class _Objection(NamedTuple):
    field: str  # below `spec_decode`
    message: str
    code: str | None = None


def check(wish: Wish, source: DraftSource, facts: SpecFacts) -> None:
    """Raises SpecError for the first objection."""
    for part in (_of_the_runner, _of_the_request, _of_the_shape, _of_the_rule, _of_the_source):
        for field, message, code in part(wish, source, facts):
            path = f"{PATH}.{field}"
            raise SpecError(f"'{path}': {message}", path, code)


def _of_the_runner(wish: Wish, source: DraftSource, facts: SpecFacts) -> Iterator[_Objection]:
    if not facts.offer.trees:
        if wish.num_drafts > 1:
            yield _Objection("num_drafts", "this runner verifies one draft only", _UNSUPPORTED)
        if wish.shape != "chain":
            field = "tree.shape" if "shape" in wish.tree else "verifier"
            yield _Objection(field, "this runner verifies chains only", _UNSUPPORTED)
    if facts.require_lossless and wish.lossy is not None:
        yield _Objection("lossy", "this server keeps the law of the output")


def _of_the_request(wish: Wish, source: DraftSource, facts: SpecFacts) -> Iterator[_Objection]:
    if facts.sampler is SamplerClass.OWN_DRAW:
        if wish.verifier not in (AUTO, "match"):
            yield _Objection("verifier", "the request's sampler chooses tokens in its own way: only match keeps them")
        if wish.lossy is not None:
            yield _Objection("lossy", "the request's sampler chooses tokens in its own way")


def _of_the_shape(wish: Wish, source: DraftSource, facts: SpecFacts) -> Iterator[_Objection]:
    if wish.shape == "chain":
        if wish.num_drafts > 1:
            yield _Objection("tree.shape", "a chain has one draft at each position")
        for field in [name for name in wish.tree if name != "shape"]:
            yield _Objection(f"tree.{field}", "it has no effect on a chain, whose length is num_tokens")
    if wish.shape == "dynamic" and wish.num_drafts > 1:
        yield _Objection("num_drafts", "it has no effect on a dynamic tree, whose siblings are tree.top_k")
    if wish.shape != "dynamic" and "top_k" in wish.tree:
        yield _Objection("tree.top_k", "it has an effect on dynamic trees only")
    if wish.sibling_law != AUTO and not wish.several:
        yield _Objection("sibling_law", "there is one draft at each position")


def _of_the_rule(wish: Wish, source: DraftSource, facts: SpecFacts) -> Iterator[_Objection]:
    rule = wish.verifier
    if wish.lossy is not None and rule != AUTO:
        yield _Objection("lossy", "it is a rule of its own and excludes a verifier")
    if rule in _CHAIN_RULES and (wish.shape != "chain" or wish.several):
        yield _Objection("verifier", f"{rule} verifies chains only")
    if rule == "kseq" and wish.shape != "sequences":
        yield _Objection("verifier", "kseq verifies sequences only")
    for name, law in (("kseq", "iid"), ("hu", "hu")):
        if rule == name and wish.sibling_law not in (AUTO, law):
            yield _Objection("sibling_law", f"{name} verifies {law} siblings only")
    if rule in _DRAWING_RULES and wish.several and not _draws(wish, source):
        yield _Objection("verifier", f"{rule} needs drafts that are drawn")
    if wish.draft_noise == "shared" and (wish.lossy is not None or rule not in (AUTO, "match")):
        yield _Objection("draft_noise", "only match is unbiased when drafts share the request's noise")


def _of_the_source(wish: Wish, source: DraftSource, facts: SpecFacts) -> Iterator[_Objection]:
    for field in wish.options:
        if field != source.field:
            yield _Objection(field, f"it has no effect on drafts of {source.name}")
    if wish.several and not source.branches:
        field = "num_drafts" if wish.num_drafts > 1 else "tree.shape"
        yield _Objection(field, f"{source.name} proposes one token at each position")
    if wish.sibling_law in ("iid", "swor", "hu") and not _draws(wish, source):
        yield _Objection("sibling_law", "no draft is drawn, so siblings are the most probable tokens: topk")
    drawn = _draws(wish, source) and not (facts.greedy and wish.draft_temperature is None)
    ranked = not drawn or wish.verifier == "hu" or wish.sibling_law in ("topk", "hu")
    if wish.several and ranked and not source.ranks:
        yield _Objection("sibling_law", f"{source.name} cannot name its most probable tokens")
    if wish.draft_noise == "shared" and not _draws(wish, source):
        yield _Objection("draft_noise", "no draft is drawn")
    if wish.draft_temperature is not None and not source.draws:
        yield _Objection("draft_temperature", f"{source.name} draws no drafts")
    if wish.draft_vocab != "full":
        if wish.draft_vocab not in facts.offer.draft_vocabularies:
            known = ", ".join(("full", *sorted(facts.offer.draft_vocabularies)))
            yield _Objection("draft_vocab", f"unknown part of the vocabulary; known: {known}")
        if not source.draws:
            yield _Objection("draft_vocab", f"{source.name} has no vocabulary of its own")


def _draws(wish: Wish, source: DraftSource) -> bool:
    """Whether at the request's own temperature, unless that is 0, drafts are drawn."""
    return source.draws and wish.draft_temperature != 0
