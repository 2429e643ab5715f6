"""Drafts behind given texts and the target's rows for them: what a verifier sees, without an engine around it.

The draft model and the target are the engine's own, so are forms, laws and random numbers. Rows do not depend on the
rule that will look at them: rules are compared on the same drafts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.spec_texts import Place
from engine.pages import Branch
from engine.runners.torch.draft_model import DraftModel, load_beside
from engine.runners.torch.loader import load, sizes
from engine.runners.torch.packing import Chunk
from engine.runners.torch.paged_model import PagedModel
from engine.settings import EngineSettings
from models.embedded import DRAFT, TARGET, locate
from samplers.argmax import lowest_argmax
from samplers.chain import Chain
from samplers.rng import Noise, Stream
from spec_decode.contract import VERIFIERS, DraftAdmission, DraftPlan, DraftTree, Verdict
from spec_decode.token_ranking import TokenRanking
from spec_decode.tree_forms import Form, depths
from spec_decode.verify.batch import DraftBatch

Ints = npt.NDArray[np.int64]
MAX_NODES = 32  # of a tree
_STEP_ROWS = 512  # of one pass
_CONTEXT = 384  # tokens of a place's text and of its tree, at most


@dataclass(frozen=True)
class Drafting:
    """How drafts are made."""

    plan: DraftPlan
    law: str = "auto"  # of siblings; auto: there are none
    vocabulary: str = "full"

    @classmethod
    def of(cls, form: Form, law: str = "auto", vocabulary: str = "full") -> Drafting:
        return cls(DraftPlan(len(form), max(depths(form)), form), law, vocabulary)


@dataclass(frozen=True)
class Drafts:
    """One tree for each of B places, and what the target says about it."""

    trees: list[DraftTree]
    p: Tensor  # [R, V] fp32 probabilities: of each root, followed by its nodes
    roots: Ints  # [B] rows of the roots

    def verify(self, rule: str, turn: int) -> Verdict:
        """turn: of several verifications, each with numbers of its own."""
        count = len(self.trees)
        noise = Noise(np.arange(count), np.full(count, turn), np.zeros(count, np.int64))
        return VERIFIERS.get(rule).verify(DraftBatch.of(self.trees, self.p, self.roots), noise, {})

    def chain(self, place: int) -> tuple[Tensor, Tensor, Tensor]:
        """(p [n, V], q [n, V], both fp64, tokens [n]) of a place's drafts, which are a chain of n that were drawn."""
        tree, root = self.trees[place], int(self.roots[place])
        p = _normal(self.p[root : root + len(tree.tokens)])
        assert tree.q is not None
        return p, _normal(tree.q[tree.q_rows]), torch.from_numpy(tree.tokens).to(p.device)

    def first_rows(self) -> tuple[Tensor, Tensor]:
        """(p [B, V], q [B, V], both fp64) of the roots, whose first children were drawn."""
        rows = [tree.q[int(tree.q_rows[0])] for tree in self.trees if tree.q is not None]
        return _normal(self.p[torch.from_numpy(self.roots)]), _normal(torch.stack(rows))


class Pair:
    """The embedded target and its draft model, with room for so many places. One rig works with it at a time."""

    @torch.inference_mode()
    def __init__(
        self, places: int, ranking: TokenRanking | None = None, parts: Mapping[str, int] | None = None
    ) -> None:
        """parts: name -> tokens of a part of the draft model's vocabulary, as the ranking has it."""
        settings = EngineSettings(
            max_model_len=_CONTEXT, max_seqs=places, max_batch_tokens=max(_STEP_ROWS, places), draft_vocab=parts or {}
        )
        loaded = load(locate(TARGET), settings)
        self.target = PagedModel(loaded, sizes(loaded, settings))
        beside = load_beside(locate(DRAFT), settings)
        self.drafter = DraftModel(beside, settings, loaded, sizes(loaded, settings, beside), ranking)
        self.branches: list[Branch] = []  # of the target, one per place

    @torch.inference_mode()
    def move(self, texts: Sequence[Sequence[int]]) -> None:
        """To places behind these texts, of which the target computes all tokens."""
        for slot, branch in enumerate(self.branches):
            self.target.pages.release(branch)
            self.drafter.free(slot)
        self.branches = [self._computed(text) for text in texts]

    def _computed(self, tokens: Sequence[int]) -> Branch:
        branch = self.target.pages.new_branch(expected=len(tokens) + MAX_NODES)
        if tokens:
            self.target.pages.append(branch, len(tokens))
            self.target.logits(self.target.pack([Chunk(branch, 0, tokens)], [len(tokens) - 1]))
        return branch


class Rig:
    """A pair at some places of texts."""

    def __init__(self, pair: Pair, places: Sequence[Place], temperature: float, chain: Chain) -> None:
        """chain: of the requests, of this temperature."""
        self.places = places
        self._pair, self._temperature, self._chain = pair, temperature, chain
        self._admitted: tuple[str, str] | None = None
        pair.move([place.tokens[:-1] for place in places])

    @torch.inference_mode()
    def draft(self, drafting: Drafting, turn: int) -> Drafts:
        """Trees behind all places. turn: of several, each drawn with numbers of its own."""
        self.admit(drafting)
        trees = self.propose(drafting, turn, len(self.places))
        return Drafts(trees, self._law(torch.cat(list(self._rows(trees)))), _roots(trees))

    @torch.inference_mode()
    def draft_position(self, drafting: Drafting, turn: int) -> Drafts:
        """For a single position. What follows the drafts is not computed: their rows are those of the roots."""
        self.admit(drafting)
        trees = self.propose(drafting, turn, len(self.places))
        counts = torch.tensor([1 + len(tree.tokens) for tree in trees], device=self._root_rows.device)
        return Drafts(trees, self._root_rows.repeat_interleave(counts, 0), _roots(trees))

    @cached_property
    def _root_rows(self) -> Tensor:
        """[B, V] probabilities."""
        nothing = DraftTree.one_hot((), ())
        return self._law(torch.cat(list(self._rows([nothing] * len(self.places)))))

    def _law(self, logits: Tensor) -> Tensor:
        """Probabilities at the temperature of the requests. logits: [R, V] fp32."""
        if self._temperature:
            return (logits / self._temperature).softmax(1)
        return torch.zeros_like(logits).scatter_(1, lowest_argmax(logits)[:, None], 1.0)

    @torch.inference_mode()
    def propose(self, drafting: Drafting, turn: int, count: int) -> list[DraftTree]:
        """Behind the first `count` places, as they have been admitted; nothing is committed."""
        noise = Noise(np.arange(count), np.full(count, turn), np.zeros(count, np.int64))
        return self._pair.drafter.propose(range(count), [drafting.plan] * count, noise)

    @torch.inference_mode()
    def admit(self, drafting: Drafting) -> None:
        """Let the drafter know the places, as requests with such drafts."""
        if self._admitted == (drafting.law, drafting.vocabulary):
            return
        self._admitted = drafting.law, drafting.vocabulary
        for slot, place in enumerate(self.places):
            self._pair.drafter.admit(
                slot,
                DraftAdmission(
                    place.tokens,
                    place.prompt_length,
                    ending_ids=self._pair.target.loaded.eos_token_ids,
                    chain=self._chain,
                    stream=Stream(slot, 0),
                    law=drafting.law,
                    vocabulary=drafting.vocabulary,
                ),
            )

    def _rows(self, trees: Sequence[DraftTree]) -> Iterator[Tensor]:
        """[r, V] fp32 logits of roots and nodes, one tree's after the other's; the branches stay as they are."""
        target, each = self._pair.target, max(1, _STEP_ROWS // (1 + MAX_NODES))
        for first in range(0, len(trees), each):
            chunks = [self._chunk(slot, trees[slot]) for slot in range(first, min(first + each, len(trees)))]
            rows = range(sum(len(chunk.tokens) for chunk in chunks))
            yield target.logits(target.pack(chunks, list(rows))).float().clone()
            for chunk in chunks:
                target.pages.truncate(chunk.branch, chunk.context)

    def _chunk(self, slot: int, tree: DraftTree) -> Chunk:
        branch, tokens = self._pair.branches[slot], (self.places[slot].tokens[-1], *tree.tokens.tolist())
        context = branch.length
        self._pair.target.pages.append(branch, len(tokens))
        return Chunk(branch, context, tokens, tree.ancestry, np.append(0, tree.depths))


def _roots(trees: Sequence[DraftTree]) -> Ints:
    """[B] rows of the roots, each of which its nodes follow."""
    sizes = np.array([1 + len(tree.tokens) for tree in trees])
    return np.cumsum(sizes) - sizes


def _normal(rows: Tensor) -> Tensor:
    """fp64 rows that sum to 1 in fp64, too."""
    exact = rows.double()
    return exact / exact.sum(1, keepdim=True)
