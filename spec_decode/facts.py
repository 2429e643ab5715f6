"""What the reader of `spec_decode` knows beside the field itself: the server, and the rest of the request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from samplers.chain import Chain
from samplers.contract import SamplerError
from spec_decode.contract import DraftSource

if TYPE_CHECKING:
    from spec_decode.engine_wide import EngineWide


class SpecError(SamplerError):
    """A request wants speculation that this server or the rest of the request has no room for; `code` goes to the
    client."""

    def __init__(self, message: str, param: str, code: str | None = None) -> None:
        super().__init__(message, param)
        self.code = code


class SamplerClass(Enum):
    """What a request's sampler leaves to verifiers (spec_decode.md 3.3)."""

    ROWS = "rows"  # a token is drawn from the processed row: every verifier keeps its law
    OWN_DRAW = "own_draw"  # tokens are chosen in another way: only `match` keeps them
    NONE = "none"  # it is no choice of one next token after the other


_DRAWN_FROM_ROWS = frozenset({"iid", "gumbel"})


def sampler_class(chain: Chain) -> SamplerClass:
    if chain.program is not None:
        return SamplerClass.NONE
    return SamplerClass.ROWS if chain.greedy or chain.draw.name in _DRAWN_FROM_ROWS else SamplerClass.OWN_DRAW


@dataclass(frozen=True)
class SpecOffer:
    """What a runner can do."""

    sources: Sequence[DraftSource] = ()  # that are loaded, the preferred ones first
    draft_vocabularies: frozenset[str] = frozenset()  # names of configured parts of the vocabulary
    max_depth: int = 16  # of any draft
    trees: bool = True  # the runner verifies more than chains
    engine_wide: EngineWide | None = None  # it speculates for all requests in this way, and in no other


@dataclass(frozen=True)
class SpecFacts:
    """Everything that the meaning of a `spec_decode` depends on."""

    offer: SpecOffer = SpecOffer()
    past_outputs: bool = False  # the operator lets requests look at their tenant's past outputs, and this one has a key
    require_lossless: bool = False
    excluded: str = ""  # what of the request excludes speculation, other than its sampler: a field's name
    greedy: bool = False  # the request's temperature is 0
    seeded: bool = False  # it has a seed of its own
    follows_seed: bool = True  # its tokens follow from a seed, be it the server's
    sampler: SamplerClass = SamplerClass.ROWS
