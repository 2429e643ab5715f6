"""Toy models, and drafters of every draft law over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache

import numpy as np

from spec_decode.verify.reference import Draft, Number, Row, path
from tests.spec_decode.enumeration import Drafter, Model, Pick, Tokens

FLOOR = 0.01  # of every probability of a toy model


def table(seed: int, vocab: int, memory: int = 3, sharpness: float = 0.7) -> Model:
    """A model whose rows depend on the last tokens in no simple way."""

    @cache
    def row(recent: Tokens) -> Row:
        random = np.random.default_rng((seed, len(recent), *recent))
        return (FLOOR + (1 - FLOOR * vocab) * random.dirichlet(np.full(vocab, sharpness))).tolist()

    return lambda tokens: row(tokens[-memory:])


def fractions(seed: int, vocab: int) -> Model:
    """The same in small fractions, some of them 0."""

    @cache
    def row(recent: Tokens) -> Row:
        weights = np.random.default_rng((seed, len(recent), *recent)).integers(0, 6, vocab).tolist()
        weights[sum(recent) % vocab] += 1
        return [Fraction(weight, sum(weights)) for weight in weights]

    return lambda tokens: row(tokens[-2:])


def unit(token: int, vocab: int) -> Row:
    return [int(other == token) for other in range(vocab)]


def without(row: Row, tokens: Sequence[int]) -> Row:
    """The row given that none of these tokens is drawn; empty if nothing is left."""
    rest = [0 if token in tokens else weight for token, weight in enumerate(row)]
    total: Number = sum(rest)
    return [weight / total for weight in rest] if total > 0 else []


Siblings = Callable[[Row, int, Callable[[Row], int]], list[tuple[int, Row, bool]]]  # token, law, drawn


def iid(q: Row, count: int, pick: Callable[[Row], int]) -> list[tuple[int, Row, bool]]:
    return [(pick(q), q, True) for _ in range(count)]


def swor(q: Row, count: int, pick: Callable[[Row], int]) -> list[tuple[int, Row, bool]]:
    found: list[tuple[int, Row, bool]] = []
    while len(found) < count and (rest := without(q, [token for token, *_ in found])):
        found.append((pick(rest), rest, True))
    return found


def top(q: Row, count: int) -> list[int]:
    return sorted(range(len(q)), key=lambda token: (-q[token], token))[:count]


def topk(q: Row, count: int, pick: Callable[[Row], int]) -> list[tuple[int, Row, bool]]:
    return [(token, unit(token, len(q)), False) for token in top(q, count)]


def hu(q: Row, count: int, pick: Callable[[Row], int]) -> list[tuple[int, Row, bool]]:
    """One drawn off the most probable ones, and those."""
    rest = without(q, top(q, count - 1))
    return [*((pick(rest), rest, True) for _ in range(bool(rest))), *topk(q, count - 1, pick)]


def hu_certain_first(q: Row, count: int, pick: Callable[[Row], int]) -> list[tuple[int, Row, bool]]:
    drawn, *others = hu(q, count, pick)
    return [*others, drawn]


def swor_then_certain(q: Row, count: int, pick: Callable[[Row], int]) -> list[tuple[int, Row, bool]]:
    """The generalised construction: T is the highest token id, the others are drawn without replacement off it."""
    last = len(q) - 1
    return [*swor(without(q, [last]), count - 1, pick), (last, unit(last, len(q)), False)]


def merged(q: Row, count: int, pick: Callable[[Row], int]) -> list[tuple[int, Row, bool]]:
    """Two sources: drawn ones, then token 0 unless it has been drawn."""
    drawn = iid(q, count - 1, pick)
    return drawn if any(token == 0 for token, *_ in drawn) else [*drawn, (0, unit(0, len(q)), False)]


def static(draft: Model, siblings: Siblings, branching: Sequence[int]) -> Drafter:
    """Trees whose nodes of each depth have that many children."""

    def propose(prefix: Tokens, pick: Pick) -> list[Draft]:
        drafts: list[Draft] = []
        level = [-1]
        for count in branching:
            following: list[int] = []
            for parent in level:
                row = draft((*prefix, *path(drafts, parent)))
                below = siblings(row, count, _numbered(pick, len(drafts)))
                following += range(len(drafts), len(drafts) + len(below))
                drafts += [Draft(token, parent, law, drawn) for token, law, drawn in below]
            level = following
        return drafts

    return propose


def sequences(draft: Model, count: int, length: int) -> Drafter:
    """Independent chains."""

    def propose(prefix: Tokens, pick: Pick) -> list[Draft]:
        drafts: list[Draft] = []
        for level in range(length):
            for sequence in range(count):
                parent = len(drafts) - count if level else -1
                row = draft((*prefix, *path(drafts, parent)))
                drafts.append(Draft(pick(level * count + sequence, row), parent, row))
        return drafts

    return propose


def _numbered(pick: Pick, first: int) -> Callable[[Row], int]:
    """Draws the tokens of consecutive nodes."""
    nodes = iter(range(first, first + 1000))
    return lambda weights: pick(next(nodes), weights)
