"""How a request speculates, resolved: every default filled in, every combination checked. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spec_decode.contract import VERIFIERS, DraftPlan
from spec_decode.tree_forms import chain, halving, sequences, static

AUTO = "auto"  # whatever the server thinks best


@dataclass(frozen=True)
class Plain:
    """No speculation."""

    fallback_reason: str | None = None  # why "auto" came to it; None: it was asked for


@dataclass(frozen=True)
class TreeShape:
    """Of the draft trees."""

    shape: str = "chain"  # chain, sequences, static or dynamic
    max_nodes: int = 32  # these three mean nothing for a chain
    depth: int = 6
    top_k: int = 8  # of a dynamic tree


@dataclass(frozen=True)
class SourceUse:
    """A source, as a request uses it."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)  # every parameter
    options_field: str = ""  # of a request, that holds them; "": there are none


@dataclass(frozen=True)
class SpecRequest:
    """What the engine is told."""

    sources: tuple[SourceUse, ...]  # of several, each step drafts from the one that pays most; the drawing one is first
    verifier: str  # name of a rule
    num_tokens: int | None = None  # length of a chain, most levels of a tree; None: the controller decides
    num_drafts: int = 1  # siblings, or sequences
    sibling_law: str = "auto"  # iid, swor, topk or hu; auto: there are no siblings
    tree: TreeShape = TreeShape()
    draft_temperature: float | None = None  # None: the request's own
    draft_noise: str = "independent"  # or shared: drafts are drawn with the request's own noise
    draft_vocab: str = "full"  # or the name of a part
    verifier_values: Mapping[str, Any] = field(default_factory=dict)  # parameters of a rule that is not lossless
    stats: str = "summary"  # none, summary or detailed

    @property
    def draft(self) -> str:
        """The source's name; "auto": there are several."""
        return self.sources[0].name if len(self.sources) == 1 else AUTO

    @property
    def lossless(self) -> bool:
        return VERIFIERS.get(self.verifier).lossless

    @property
    def seed_stable(self) -> bool:
        """The seed alone decides the output, whatever the drafts and the load are."""
        return self.verifier == "match"

    def plan(self, max_depth: int) -> DraftPlan:
        """What may be proposed in a step that has room for drafts of this depth (see `depth_limit`)."""
        depth = max_depth if self.num_tokens is None else min(max_depth, self.num_tokens)
        if self.tree.shape == "chain":
            return DraftPlan(depth, depth, chain(depth))
        depth, nodes = min(depth, self.tree.depth), self.tree.max_nodes
        match self.tree.shape:
            case "dynamic":
                return DraftPlan(nodes, depth, None, self.tree.top_k)
            case "sequences":
                form = sequences(self.num_drafts, depth)[:nodes]
            case _:
                form = static(halving(self.num_drafts, depth), nodes)
        return DraftPlan(nodes, depth, form)

    def report(self) -> dict[str, Any]:
        """The resolved object as the response shows it. Sent back, that of a lossless rule resolves to this."""
        tree: dict[str, Any] = {"shape": self.tree.shape}
        if self.tree.shape != "chain":
            tree |= {"max_nodes": self.tree.max_nodes, "depth": self.tree.depth}
        if self.tree.shape == "dynamic":
            tree["top_k"] = self.tree.top_k
        alone = self.sources if len(self.sources) == 1 else ()  # several are used as they come
        options = {one.options_field: dict(one.options) for one in alone if one.options_field}
        return {
            "draft": self.draft,
            "verifier": self.verifier,
            "num_tokens": "auto" if self.num_tokens is None else self.num_tokens,
            "num_drafts": self.num_drafts,
            "sibling_law": self.sibling_law,
            "tree": tree,
            "draft_temperature": "same" if self.draft_temperature is None else self.draft_temperature,
            "draft_noise": self.draft_noise,
            "draft_vocab": self.draft_vocab,
            **options,
            "stats": self.stats,
        }


def depth_limit(remaining_tokens: int, context_left: int, max_depth: int) -> int:
    """Levels of drafts that a step has room for: the verifier's own token comes behind them.

    remaining_tokens: of the output; context_left: positions behind the committed tokens; max_depth: the server's.
    """
    return max(0, min(remaining_tokens - 1, context_left - 1, max_depth))
