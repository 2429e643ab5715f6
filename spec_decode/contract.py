"""The contracts of speculation: a `Drafter` proposes a tree of tokens, a `Verifier` accepts a path and adds one.

`p` is the target's processed row, `q` exactly the law a draft token was drawn from. Row 0 of the target belongs
to the root (the pending token), row i + 1 follows node i.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from samplers.registry import Registry
from samplers.rng import Noise


class Law(IntEnum):
    """How a node's token was chosen."""

    ONE_HOT = 0  # deterministically
    DENSE = 1  # from a row of the draft buffer


class TreeError(ValueError):
    """A draft tree contradicts itself; a bug of its drafter."""


@dataclass(frozen=True)
class DraftTree:
    """Drafts of one request in generation order; the root is the last committed token and not a node."""

    tokens: npt.NDArray[np.int64]  # [N]
    parents: npt.NDArray[np.int32]  # [N], -1: root; parents come before their children
    laws: npt.NDArray[np.uint8]  # [N] Law
    q_rows: npt.NDArray[np.int32]  # [N] row of `q` a node was drawn from; -1 for ONE_HOT
    q_minus: npt.NDArray[np.float32]  # [N] mass of earlier siblings removed: q(x) / (1 - q_minus) off them
    q: Tensor | None = None  # [rows, V] fp32 probabilities

    @property
    def depths(self) -> npt.NDArray[np.int64]:
        """[N], 1 for children of the root."""
        depths = np.zeros(len(self.tokens), np.int64)
        for node, parent in enumerate(self.parents):
            depths[node] = 1 if parent < 0 else depths[parent] + 1
        return depths

    def check(self) -> None:
        """Raises TreeError."""
        count = len(self.tokens)
        if any(len(part) != count for part in (self.parents, self.laws, self.q_rows, self.q_minus)):
            raise TreeError("the arrays of a tree must have one entry per node")
        if not all(-1 <= parent < node for node, parent in enumerate(self.parents)):
            raise TreeError("a parent must come before its children")
        dense = self.laws == Law.DENSE
        rows = 0 if self.q is None else len(self.q)
        if ((self.q_rows >= rows) & dense).any() or ((self.q_rows < 0) & dense).any():
            raise TreeError("a drawn node must name a row of q")


@dataclass(frozen=True)
class DraftPlan:
    """What a drafter may propose in this step."""

    max_nodes: int
    max_depth: int
    siblings: int = 1


class Drafter(Protocol):
    """Proposes drafts for one request; every decision depends on committed tokens and its own draws only."""

    name: ClassVar[str]

    def propose(self, tokens: list[int], plan: DraftPlan, noise: Noise) -> DraftTree:
        """tokens: prompt and output so far. An empty tree is fine."""
        ...


@dataclass(frozen=True)
class Verdict:
    """Per request b of B: the accepted path and the token that follows it."""

    path: npt.NDArray[np.int32]  # [B, D + 1] accepted nodes, padded with -1
    n_acc: npt.NDArray[np.int32]  # [B]
    next_token: npt.NDArray[np.int64]  # [B]
    next_row: npt.NDArray[np.int32]  # [B] target row the next token was drawn from
    examined: npt.NDArray[np.int32]  # [B] nodes the rule looked at


class Verifier(Protocol):
    """A pure function of its inputs; works for ragged trees, the empty one included."""

    name: ClassVar[str]
    lossless: ClassVar[bool]

    def verify(self, trees: list[DraftTree], rows: list[Tensor], noise: Noise) -> Verdict:
        """rows: per request, processed target probabilities [N + 1, V] fp32."""
        ...


DRAFTERS: Registry[Drafter] = Registry("drafter", "drafthouse.drafters")
VERIFIERS: Registry[Verifier] = Registry("verifier", "drafthouse.verifiers")
