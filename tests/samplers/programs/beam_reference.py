"""Beam search over a toy model, in plain Python and as slow as it likes, and everything the toy model can say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Toy:
    """Every prefix has a row of its own; token 0 ends a text."""

    seed: int
    vocab: int = 3
    max_tokens: int = 4
    ending_bias: float = 0.0

    @lru_cache(None)  # noqa: B019 - a few hundred prefixes
    def law(self, output: Ids) -> list[float]:
        row = 1.5 * np.random.default_rng([self.seed, *output]).standard_normal(self.vocab)
        row[0] += self.ending_bias
        return row.astype(np.float32).tolist()

    @lru_cache(None)  # noqa: B019
    def logp(self, ids: Ids) -> float:
        """ln p of all its tokens."""
        return sum(_log_softmax(self, ids[:at])[token] for at, token in enumerate(ids))

    def ended(self, ids: Ids) -> bool:
        return ids[-1:] == (0,) or len(ids) == self.max_tokens

    def texts(self, prefix: Ids = ()) -> list[Ids]:
        """All texts that begin with the prefix."""
        if self.ended(prefix):
            return [prefix]
        return [text for token in range(self.vocab) for text in self.texts((*prefix, token))]

    def prefixes(self) -> list[Ids]:
        """All that do not end a text."""
        return sorted({text[:at] for text in self.texts() for at in range(len(text))})


@lru_cache(None)
def _log_softmax(toy: Toy, output: Ids) -> list[float]:
    row = np.array(toy.law(output))
    return (row - np.logaddexp.reduce(row)).tolist()


def score(toy: Toy, ids: Ids, alpha: float) -> float:
    return toy.logp(ids) / len(ids) ** alpha


def beam_search(
    toy: Toy,
    width: int,
    alpha: float,
    *,
    stop: str = "never",
    groups: int = 1,
    diversity: float = 0.0,
    bonus: Callable[[Ids], float] = lambda ids: 0.0,
    admits: Callable[[Ids], bool] = lambda ids: True,
    judges: Callable[[Ids], bool] = lambda ids: True,
) -> list[Ids]:
    """The texts found, best first. `stop`: as the program's, or `never` while there is anything to go on with.

    `bonus` of a text that has not ended; `admits` a text, ended or not; `judges` an ended one of the best 2W.
    """
    share = width // groups
    beams: list[list[Ids]] = [[()] for _ in range(groups)]
    found: list[list[Ids]] = [[] for _ in range(groups)]
    while any(beams):
        taken: list[int] = []
        for group in range(groups):

            def rank(ids: Ids, extra: float, taken: list[int] = taken) -> float:
                return toy.logp(ids) - diversity * taken.count(ids[-1]) + extra

            def weight(ids: Ids) -> float:
                return 0.0 if toy.ended(ids) else bonus(ids)

            every = [(*beam, token) for beam in beams[group] for token in range(toy.vocab)]
            before = {ids: bonus(ids[:-1]) if ids[:-1] else 0.0 for ids in every}
            every = sorted(filter(admits, every), key=lambda ids: -rank(ids, before[ids]))[: 2 * share]
            every = [ids for ids in every if not toy.ended(ids) or judges(ids)]
            every.sort(key=lambda ids: -rank(ids, weight(ids)))
            stopped = [ids for ids in every[:share] if ids[-1] == 0]
            others = [ids for ids in every if ids[-1] != 0][:share]
            found[group] += stopped + [ids for ids in others if toy.ended(ids)]
            found[group] = sorted(found[group], key=lambda ids: -score(toy, ids, alpha))[:share]
            beams[group] = [ids for ids in others if not toy.ended(ids)]
            if len(found[group]) == share and beams[group]:
                best = max(map(toy.logp, beams[group]))
                longest = toy.max_tokens if alpha > 0 else len(beams[group][0])
                enough = score(toy, found[group][-1], alpha) >= best / longest**alpha
                if stop == "first" or (stop == "bound" and enough):
                    beams[group] = []
            taken += [ids[-1] for ids in beams[group]]
    return sorted({ids for ones in found for ids in ones}, key=lambda ids: -score(toy, ids, alpha))


def exact_v(toy: Toy, holds: Callable[[Ids], bool]) -> Callable[[Ids], float]:
    """P(the text will be one that holds | prefix), by enumeration."""

    def v(prefix: Ids) -> float:
        return sum(math.exp(toy.logp(ids) - toy.logp(prefix)) for ids in toy.texts(prefix) if holds(ids))

    return v
