"""The contracts of speculation: a `Drafter` proposes a tree of tokens, a `Verifier` accepts a path and adds one.

`p` is the target's processed row, `q` exactly the law a draft token was drawn from. Row 0 of the target belongs
to the root (the pending token), row i + 1 follows node i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from samplers.chain import Chain
from samplers.contract import Param
from samplers.registry import Registry
from samplers.rng import Noise, Stream
from spec_decode.cost_model import DraftCost
from spec_decode.tree_forms import part

if TYPE_CHECKING:
    from spec_decode.verify.batch import DraftBatch


class Law(IntEnum):
    """How a node's token was chosen."""

    ONE_HOT = 0  # deterministically
    DENSE = 1  # from a row of the draft buffer


class TreeError(ValueError):
    """A draft tree contradicts itself; a bug of its drafter."""


class VerdictError(ValueError):
    """A verdict does not fit the drafts that it is about; a bug of its rule."""


@dataclass(frozen=True)
class DraftTree:
    """Drafts of one request in generation order; the root is the last committed token and not a node.

    Siblings are verified in this order too. A drawn node whose `q_minus` is positive was drawn without replacement:
    from its row without the tokens of its earlier siblings of the same row.
    """

    tokens: npt.NDArray[np.int64]  # [N]
    parents: npt.NDArray[np.int32]  # [N], -1: root; parents come before their children
    laws: npt.NDArray[np.uint8]  # [N] Law
    q_rows: npt.NDArray[np.int32]  # [N] row of `q` a node was drawn from; -1 for ONE_HOT
    q_minus: npt.NDArray[np.float32]  # [N] mass of earlier siblings removed: q(x) / (1 - q_minus) off them
    q: Tensor | None = None  # [rows, V] fp32 probabilities
    matched: int = 0  # of a draft that was looked up: how many of the last tokens it has been found behind

    @classmethod
    def one_hot(cls, tokens: Sequence[int], parents: Sequence[int], matched: int = 0) -> DraftTree:
        """A tree of which nothing was drawn."""
        count = len(tokens)
        return cls(
            np.array(tokens, np.int64),
            np.array(parents, np.int32),
            np.full(count, Law.ONE_HOT, np.uint8),
            np.full(count, -1, np.int32),
            np.zeros(count, np.float32),
            matched=matched,
        )

    @cached_property
    def depths(self) -> npt.NDArray[np.int64]:
        """[N], 1 for children of the root."""
        depths = np.zeros(len(self.tokens), np.int64)
        for node, parent in enumerate(self.parents):
            depths[node] = 1 if parent < 0 else depths[parent] + 1
        return depths

    @property
    def is_chain(self) -> bool:
        """No node has siblings."""
        return bool((self.parents == np.arange(-1, len(self.parents) - 1)).all())

    @property
    def ancestry(self) -> npt.NDArray[np.bool_]:
        """[N + 1, N + 1] by place + 1: whether the second place is on the way to the first, or the first itself."""
        seen = np.eye(len(self.tokens) + 1, dtype=bool)
        for node, parent in enumerate(self.parents):
            seen[node + 1] |= seen[parent + 1]
        return seen

    def part(self, nodes: Sequence[int]) -> DraftTree:
        """The tree of these nodes, in rising order, which hold the parents of all of them. Of drawn nodes none may be
        left out for what it is."""
        kept = list(nodes)
        parents = np.array(part(self.parents.tolist(), kept), np.int32)
        laws, q_rows, q_minus = self.laws[kept], self.q_rows[kept], self.q_minus[kept]
        return DraftTree(self.tokens[kept], parents, laws, q_rows, q_minus, self.q, self.matched)

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
    """What may be proposed for one request in this step. Trees have a fixed form, or grow where they are probable."""

    max_nodes: int
    max_depth: int
    form: tuple[int, ...] | None = None  # parents of at most `max_nodes` nodes, siblings best first; None: it grows
    top_k: int = 1  # of a tree that grows: children of a node, and nodes of one depth that get some
    gains: tuple[float, ...] | None = None  # of each node of the form: how probable it is to be accepted, for drafters
    # that stop where they are not confident (controller.confident); None: all nodes are wanted


@dataclass(frozen=True)
class DraftAdmission:
    """What a drafter learns when a slot is taken."""

    tokens: Sequence[int] = ()  # prompt and output so far, as far as they are committed
    prompt_length: int = 0  # of it; what follows is output
    options: Mapping[str, Any] = field(default_factory=dict)  # of the drafter's source: every parameter
    ending_ids: frozenset[int] = frozenset()  # no draft goes on behind one of them
    tenant: str | None = None  # whose past outputs may be looked at and added to; None: nobody's
    # of drafts that are drawn:
    chain: Chain | None = None  # shapes the drafter's rows, by stages that remember nothing; greedy: the best are taken
    stream: Stream = field(default=Stream(0, 0))  # the choice's random stream
    law: str = "auto"  # of siblings: iid, swor, topk or hu; auto: there are none
    shared_noise: bool = False  # the chain's draw picks, with the very numbers of the positions it picks for
    vocabulary: str = "full"  # or the name of a part


class Drafter(Protocol):
    """Proposes drafts for the requests of one engine, whose thread it belongs to. What it remembers of a request is
    kept under its slot. Every decision depends on committed tokens and its own draws only."""

    def admit(self, slot: int, admission: DraftAdmission) -> None:
        """Fully overwrite the slot."""
        ...

    def commit(self, slot: int, tokens: Sequence[int]) -> None:
        """These follow what has been committed so far; drafts that they contradict are forgotten."""
        ...

    def propose(self, slots: Sequence[int], plans: Sequence[DraftPlan], noise: Noise) -> list[DraftTree]:
        """One tree per slot, perhaps an empty one. slots: distinct; noise: of each slot's stream at its step start."""
        ...

    def fork(self, parent: int, child: int, stream: Stream) -> None:
        """Copy a slot, for a choice with this random stream; both go on independently."""
        ...

    def free(self, slot: int, keep: bool = False) -> None:
        """keep: the output is finished, and may be looked at when drafts are made for its tenant's later requests."""
        ...


class DraftSource(Protocol):
    """Where drafts come from, as requests name it. Stateless."""

    name: ClassVar[str]
    draws: ClassVar[bool]  # its nodes are drawn, unless a request wants drafts at temperature 0; else all are ONE_HOT
    branches: ClassVar[bool]  # it can propose several tokens at one position
    ranks: ClassVar[bool]  # it can name its most probable tokens
    field: ClassVar[str]  # the object of a request that holds its parameters; "": it has none
    params: ClassVar[tuple[Param, ...]]

    def check(self, values: Mapping[str, Any], path: str) -> None:
        """Raises SamplerError for values that exclude each other."""
        ...


@dataclass(frozen=True)
class LoadedSource:
    """A source at work in one engine."""

    source: DraftSource
    drafter: Drafter
    cost: DraftCost | None = None  # None: next to nothing


@dataclass(frozen=True)
class Verdict:
    """Per request b of B: the accepted path and the token that follows it. D is the depth of the deepest tree."""

    path: npt.NDArray[np.int32]  # [B, D + 1] accepted nodes, padded with -1
    n_acc: npt.NDArray[np.int32]  # [B]
    next_token: npt.NDArray[np.int64]  # [B]; means nothing where the row it comes from is a failed one
    next_row: npt.NDArray[np.int32]  # [B] target row the next token was drawn from
    repaired: npt.NDArray[np.int32]  # [B] residuals that rounding left without mass; more than a few are an alarm

    def check(self, batch: DraftBatch) -> None:
        """Raises VerdictError."""
        count, depth = len(batch), batch.depth
        each = (self.n_acc, self.next_token, self.next_row, self.repaired)
        if self.path.shape != (count, depth + 1) or any(part.shape != (count,) for part in each):
            raise VerdictError("the arrays of a verdict must have one entry per request")
        if any(part.dtype.kind != "i" for part in (self.path, *each)):
            raise VerdictError("a verdict is made of whole numbers")
        taken = np.arange(depth + 1) < self.n_acc[:, None]
        inside = (self.path >= 0) & (self.path < batch.nodes)
        above = np.concatenate([np.full((count, 1), -1), self.path[:, :-1]], 1)
        parents = np.take_along_axis(batch.parents, np.where(inside, self.path, 0), 1)
        if (taken & ~(inside & (parents == above))).any() or (taken.sum(1) != self.n_acc).any():
            raise VerdictError("what is accepted must be a path that begins below the root")
        if ((self.next_token < 0) | (self.next_token >= batch.p.shape[1])).any():
            raise VerdictError("the token that follows must be one of the vocabulary")


class Verifier(Protocol):
    """A pure function of its inputs; works for ragged trees, the empty one included."""

    name: ClassVar[str]
    lossless: ClassVar[bool]
    params: ClassVar[tuple[Param, ...]]

    def verify(self, batch: DraftBatch, noise: Noise, params: Mapping[str, npt.NDArray[np.float64]]) -> Verdict:
        """noise: one row per request, its position the number of output tokens committed when the step begins;
        params[name] is [B]. Raises TreeError for a tree that is not of the shape the rule is for."""
        ...


DRAFT_SOURCES: Registry[DraftSource] = Registry("draft source", "drafthouse.draft_sources")
VERIFIERS: Registry[Verifier] = Registry("verifier", "drafthouse.verifiers")
