"""A `spec_decode` object as it was sent: types and ranges are checked, what was left out stays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samplers.contract import Param, SamplerError
from samplers.fields import fields_of
from spec_decode.contract import VERIFIERS, DraftSource
from spec_decode.request import AUTO

PATH = "spec_decode"
DRAFTS = (AUTO, "draft_model", "heads", "lattice", "prompt_lookup", "suffix", "corpus", "prediction", "hybrid")
VERIFIER_NAMES = (AUTO, "match", "token", "block", "rrs", "kseq", "hu", "traversal")

_WORDS = (
    Param("verifier", str, AUTO, choices=VERIFIER_NAMES),
    Param("sibling_law", str, AUTO, choices=(AUTO, "iid", "swor", "topk", "hu")),
    Param("draft_noise", str, AUTO, choices=(AUTO, "independent", "shared")),
    Param("stats", str, "summary", choices=("none", "summary", "detailed")),
)
_NUM_TOKENS = Param("num_tokens", int, 1, low=1, high=32)
_NUM_DRAFTS = Param("num_drafts", int, 1, low=1, high=8)
_DRAFT_TEMPERATURE = Param("draft_temperature", float, 0.0, low=0, high=5)
_TREE = (
    Param("shape", str, "chain", choices=("chain", "sequences", "static", "dynamic")),
    Param("max_nodes", int, 32, low=1, high=64),
    Param("depth", int, 6, low=1, high=16),
    Param("top_k", int, 8, low=1, high=16),
)
_NAMED = ("draft", "num_tokens", "num_drafts", "tree", "draft_temperature", "draft_vocab", "lossy")


@dataclass(frozen=True)
class Wish:
    """None: not said."""

    draft: str
    verifier: str
    sibling_law: str
    draft_noise: str
    stats: str
    num_tokens: int | None
    num_drafts: int
    draft_temperature: float | None
    draft_vocab: str
    tree: Mapping[str, Any]  # the fields that were given
    options: Mapping[str, Any]  # by field of a source, not checked yet
    lossy: tuple[str, Mapping[str, Any]] | None  # name of a rule and its parameters

    @property
    def shape(self) -> str:
        """The shape that is meant: sequences where the rule knows nothing else."""
        if "shape" in self.tree:
            return str(self.tree["shape"])
        if self.verifier == "kseq":
            return "sequences"
        return "chain" if self.num_drafts == 1 else "static"

    @property
    def several(self) -> bool:
        """Whether there are several drafts at one position."""
        return self.num_drafts > 1 or (self.shape == "dynamic" and self.tree.get("top_k", 2) > 1)


def read_wish(value: Any, sources: Sequence[DraftSource]) -> Wish:
    """sources: those that are loaded, whose fields are known. Raises SamplerError."""
    options = [source.field for source in sources if source.field]
    words = [param.name for param in _WORDS]
    given = fields_of(value, PATH, (*_NAMED, *words, *options))
    tree = fields_of(given.get("tree", {}), f"{PATH}.tree", [param.name for param in _TREE])
    vocabulary = given.get("draft_vocab", "full")
    if not isinstance(vocabulary, str):
        raise SamplerError(f"'{PATH}.draft_vocab' must be a string", f"{PATH}.draft_vocab")
    return Wish(
        draft=_word(given.get("draft", AUTO), (*DRAFTS, *(source.name for source in sources)), "draft"),
        num_tokens=_number_or(AUTO, _NUM_TOKENS, given),
        num_drafts=int(_NUM_DRAFTS.check(given.get("num_drafts", 1), f"{PATH}.num_drafts")),
        draft_temperature=_number_or("same", _DRAFT_TEMPERATURE, given),
        draft_vocab=vocabulary,
        tree={p.name: p.check(tree[p.name], f"{PATH}.tree.{p.name}") for p in _TREE if p.name in tree},
        options={name: given[name] for name in options if name in given},
        lossy=_lossy(given["lossy"]) if "lossy" in given else None,
        **{p.name: str(p.check(given.get(p.name, p.neutral), f"{PATH}.{p.name}")) for p in _WORDS},
    )


def values_of(params: Sequence[Param], value: Any, path: str) -> dict[str, Any]:
    """All parameters, those that are not in the object at their defaults. Raises SamplerError."""
    given = fields_of(value, path, [param.name for param in params])
    return {param.name: param.check(given.get(param.name, param.neutral), f"{path}.{param.name}") for param in params}


def _word(value: Any, known: Sequence[str], name: str) -> str:
    path = f"{PATH}.{name}"
    return str(Param(name, str, AUTO, choices=tuple(dict.fromkeys(known))).check(value, path))


def _number_or(word: str, param: Param, given: Mapping[str, Any]) -> Any:
    """None for the word."""
    value, path = given.get(param.name, word), f"{PATH}.{param.name}"
    if isinstance(value, str):
        if value != word:
            raise SamplerError(f"'{path}' must be \"{word}\" or a number in {param.range_text()}", path)
        return None
    return param.check(value, path)


def _lossy(value: Any) -> tuple[str, Mapping[str, Any]]:
    """The one rule that is named, and its parameters."""
    path = f"{PATH}.lossy"
    known = {verifier.name: verifier for verifier in VERIFIERS if not verifier.lossless}
    named = fields_of(value, path, known)
    if len(named) != 1:
        raise SamplerError(f"'{path}' must name one rule: {', '.join(known)}", path)
    [(name, values)] = named.items()
    return name, values_of(known[name].params, values, f"{path}.{name}")
