"""From logits of a draft model to the children of places: shaped as the requests ask, then chosen by each one's law of
siblings. Knows nothing about KV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samplers.gumbel import perturbed
from samplers.rng import Noise, Purpose, k52, philox
from samplers.stack import SamplerStack
from spec_decode.contract import DraftAdmission
from spec_decode.controller import confident
from spec_decode.drafters.growing_tree import GrowingTree, Place
from spec_decode.drafters.siblings import LAWS, Rows, Siblings, best

# In place of a law: the first child is the request's own draw from the row, with the very numbers of the position that
# it picks for; the others are what the Gumbel draw would have picked next, or the most probable tokens.
SHARED, SHARED_GUMBEL = "shared", "shared gumbel"
TOPK = "topk"

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Growing:
    """A tree that is drafted in one call of the drafter."""

    at: int  # which of the call's
    slot: int
    law: str  # of LAWS, or one of the two shared ones
    tree: GrowingTree


Wave = Sequence[tuple[Growing, Place]]


def law_of(admission: DraftAdmission) -> str:
    chain = admission.chain
    if chain is not None and chain.greedy:
        return TOPK
    if admission.shared_noise:
        return SHARED_GUMBEL if chain is not None and chain.draw.name == "gumbel" else SHARED
    return admission.law


def is_certain(law: str) -> bool:
    """All nodes are ONE_HOT."""
    return law in (TOPK, SHARED, SHARED_GUMBEL)


class DraftRows:
    """Chooses children in one call of the drafter, and keeps the rows that they were drawn from."""

    def __init__(self, stack: SamplerStack, noise: Noise, lanes: int) -> None:
        """noise: [B], of each tree's stream at its step start; lanes: places' numbers are below it."""
        self._stack, self._noise, self._lanes = stack, noise, lanes
        self._bits: Ints | None = None  # [B, lanes] int64 in [0, 2^52), made when something is drawn
        self._q: list[Tensor] = []  # [n, V] each
        self._rows = 0  # in them

    def q(self) -> Tensor | None:
        """[rows, V] fp32 of all nodes that were drawn."""
        return None if not self._q else self._q[0] if len(self._q) == 1 else torch.cat(self._q)

    def keep(self, q: Tensor) -> int:
        """Keep rows that nodes were drawn from elsewhere; the number of the first. q: [n, V] fp32."""
        self._q.append(q)
        self._rows += len(q)
        return self._rows - len(q)

    def bits(self, members: Sequence[Growing], lanes: int) -> Tensor:
        """[lanes, B] int64 in [0, 2^52) of the first lanes of these trees."""
        return torch.from_numpy(self._all_bits()[[one.at for one in members], :lanes].T.copy())

    def grow(self, wave: Wave, logits: Tensor) -> None:
        """Add the children of these places to their trees. logits: [P, V] fp32, the model's rows there."""
        laws = [growing.law for growing, _ in wave]
        if len(set(laws)) == 1:
            self._grow(laws[0], wave, logits)
            return
        for law in dict.fromkeys(laws):
            members = [row for row, own in enumerate(laws) if own == law]
            self._grow(law, [wave[row] for row in members], logits[members])

    def _grow(self, law: str, wave: Wave, logits: Tensor) -> None:
        slots = np.array([growing.slot for growing, _ in wave])
        noise = self._noise[np.array([growing.at for growing, _ in wave])]
        positions = noise.positions + np.array([growing.tree.depth(place.node) for growing, place in wave])
        most = max(place.count for _, place in wave)
        reached = [growing.tree.reached(place.node) for growing, place in wave]
        scored = any(growing.tree.scored for growing, _ in wave)
        if law in (SHARED, SHARED_GUMBEL):
            sampled = self._stack.sample(logits, slots, positions)
            shaped, failures = sampled.processed, sampled.failures
            others = (
                shaped
                if law == SHARED or most == 1
                else _perturbed(shaped, Noise(noise.keys, noise.choices, positions))
            )
            siblings = Siblings(_ahead_of(others, sampled.tokens, most))
        else:
            shaped, failures = self._stack.shape(logits, slots, positions)
        q = shaped.softmax(1) if law != TOPK or scored or any(one is not None for one in reached) else shaped
        if law in LAWS:
            bits = self._bits_of(law, wave, most).to(q.device)
            siblings = LAWS[law](Rows(shaped, q, [place.count for _, place in wave], bits))
        tokens = siblings.tokens.tolist()
        for row in failures:
            tokens[row] = []
        if any(one is not None for one in reached):
            for row, top in enumerate(q.amax(1).tolist()):
                before = reached[row]
                if before is not None and not confident(np.array(before), np.array(top)):
                    tokens[row] = []
        scores = _scores(law, siblings.tokens, q).tolist() if scored else [None] * len(wave)
        minus = [None] * len(wave) if siblings.q_minus is None else siblings.q_minus.tolist()
        for row, (growing, place) in enumerate(wave):
            growing.tree.add(place, tokens[row], siblings.drawn, self._rows + row, minus[row], scores[row])
        if siblings.q is not None:
            self.keep(siblings.q)

    def _bits_of(self, law: str, wave: Wave, most: int) -> Tensor:
        """[most, P] int64; those of children that a place does not get are not used."""
        if law == TOPK:
            return torch.zeros(most, len(wave), dtype=torch.int64)
        trees = np.array([growing.at for growing, _ in wave])
        lanes = np.array([place.lane for _, place in wave]) + np.arange(most)[:, None]
        return torch.from_numpy(self._all_bits()[trees, np.minimum(lanes, self._lanes - 1)])

    def _all_bits(self) -> Ints:
        """[B, lanes]"""
        noise = self._noise
        if self._bits is None:
            keys, choices, starts = noise.keys[:, None], noise.choices[:, None], noise.positions[:, None]
            words = philox(keys, choices, starts, np.arange(self._lanes), Purpose.DRAFT)
            self._bits = k52(words[0], words[1])
        return self._bits


def _perturbed(shaped: Tensor, noise: Noise) -> Tensor:
    return torch.from_numpy(perturbed(shaped, noise)).to(shaped.device)


def _ahead_of(others: Tensor, picks: Tensor, count: int) -> Tensor:
    """[P, count] the picks, then the best of the others. others: [P, V]; picks: [P]."""
    if count == 1:
        return picks[:, None]
    return torch.cat([picks[:, None], best(others.scatter(1, picks[:, None], -torch.inf), count - 1)], 1)


def _scores(law: str, tokens: Tensor, q: Tensor) -> Tensor:
    """[P, K] ln of how probable each child is. What a shared draw picks is likely for other reasons than its
    probability: there the first child counts as the most probable token, and so on."""
    if law in LAWS:
        return q.gather(1, tokens.clamp(min=0)).log()
    return q.topk(min(tokens.shape[1], q.shape[1]), 1).values.log()
