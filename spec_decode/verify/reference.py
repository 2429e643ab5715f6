"""The verifiers once more, for one request in plain Python, straight from their definitions: the oracle in tests.

A rule asks a `Chance` for its decisions, so it can be run with given uniforms, or through all its outcomes with their
probabilities. Numbers are floats or, except for K-SEQ and typical acceptance, fractions. Rows are lists; `rows[0]` is
the root's, `rows[i + 1]` follows node i.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

Number = Any  # float or Fraction
Row = Sequence[Number]
_HALVINGS = 40


class Chance(Protocol):
    """Where a rule's decisions come from."""

    def accept(self, node: int, probability: Number) -> bool:
        """Whether the node's uniform is below this."""
        ...

    def draw(self, offset: int, weights: Row, correction: bool) -> int:
        """A token for the position `offset` after the step's beginning."""
        ...


class Draft(NamedTuple):
    """A node."""

    token: int
    parent: int  # -1: root
    law: Row  # the whole law of its token, given its path and its earlier siblings
    drawn: bool = True  # or chosen deterministically, its law being a unit vector


class Stop(NamedTuple):
    """Where a rule ends."""

    place: int  # deepest accepted node, or -1
    token: int  # that follows


Rule = Callable[[Sequence[Draft], Sequence[Row], Chance], Stop]


def children(drafts: Sequence[Draft], place: int) -> list[int]:
    return [node for node, draft in enumerate(drafts) if draft.parent == place]


def depth(drafts: Sequence[Draft], place: int) -> int:
    return 0 if place < 0 else 1 + depth(drafts, drafts[place].parent)


def path(drafts: Sequence[Draft], place: int) -> list[int]:
    """Tokens from the root to a place."""
    return [] if place < 0 else [*path(drafts, drafts[place].parent), drafts[place].token]


def excess(p: Row, q: Row, rate: Number = 1) -> list[Number]:
    """(rate * p - q)+"""
    return [max(rate * a - b, 0) for a, b in zip(p, q, strict=True)]


def norm(weights: Row, otherwise: Row) -> Row:
    total = sum(weights)
    return [weight / total for weight in weights] if total > 0 else otherwise


def ratio(p: Number, q: Number) -> Number:
    """min(p / q, 1)"""
    return min(p / q, 1) if q > 0 else 0


def match(drafts: Sequence[Draft], rows: Sequence[Row], chance: Chance) -> Stop:
    places, offset = [-1], 0
    while True:
        token = chance.draw(offset, rows[places[0] + 1], False)
        found = [node for node, draft in enumerate(drafts) if draft.parent in places and draft.token == token]
        if not found:
            return Stop(places[0], token)
        places, offset = found, offset + 1


def token(drafts: Sequence[Draft], rows: Sequence[Row], chance: Chance) -> Stop:
    for node, draft in enumerate(drafts):
        p, q = rows[node], draft.law
        if not chance.accept(node, ratio(p[draft.token], q[draft.token])):
            return Stop(node - 1, chance.draw(node, norm(excess(p, q), p), True))
    return Stop(len(drafts) - 1, chance.draw(len(drafts), rows[-1], False))


def block(drafts: Sequence[Draft], rows: Sequence[Row], chance: Chance) -> Stop:
    count = len(drafts)
    rates: list[Number] = [1]
    for node, draft in enumerate(drafts):
        weight = draft.law[draft.token]
        rates.append(min(rates[-1] * rows[node][draft.token] / weight, 1) if weight > 0 else 0)
    for length in range(count, 0, -1):
        needed = rates[length]
        if length < count:
            left = sum(excess(rows[length], drafts[length].law, rates[length]))
            rest = left + 1 - rates[length]
            needed = left / rest if rest > 0 else 1
        if chance.accept(length - 1, needed):
            break
    else:
        length = 0
    if length == count:
        return Stop(count - 1, chance.draw(count, rows[count], False))
    weights = excess(rows[length], drafts[length].law, rates[length])
    return Stop(length - 1, chance.draw(length, norm(weights, rows[length]), True))


def rrs(drafts: Sequence[Draft], rows: Sequence[Row], chance: Chance) -> Stop:
    place, offset = -1, 0
    while True:
        rest, below = rows[place + 1], children(drafts, place)
        for node in below:
            law, drafted = drafts[node].law, drafts[node].token
            if chance.accept(node, ratio(rest[drafted], law[drafted])):
                place, offset = node, offset + 1
                break
            rest = norm(excess(rest, law), rest)
        else:
            return Stop(place, chance.draw(offset, rest, bool(below)))


def hu(drafts: Sequence[Draft], rows: Sequence[Row], chance: Chance) -> Stop:
    place, offset = -1, 0
    while True:
        rest, rejected = rows[place + 1], False
        below = children(drafts, place)
        for node in (node for node in below if drafts[node].drawn):
            law, drafted = drafts[node].law, drafts[node].token
            if chance.accept(node, ratio(rest[drafted], law[drafted])):
                place, offset = node, offset + 1
                break
            rest, rejected = norm(excess(rest, law), rest), True
        else:
            emitted = chance.draw(offset, rest, rejected)
            certain = [node for node in below if not drafts[node].drawn and drafts[node].token == emitted]
            if not certain:
                return Stop(place, emitted)
            place, offset = certain[0], offset + 1


def kseq(drafts: Sequence[Draft], rows: Sequence[Row], chance: Chance) -> Stop:
    places, offset = [-1], 0
    while True:
        p = rows[places[0] + 1]
        below = [node for node, draft in enumerate(drafts) if draft.parent in places]
        if not below:
            return Stop(places[0], chance.draw(offset, p, False))
        q, count = drafts[below[0]].law, len(below)
        rho = _factor(p, q, count)
        beta = sum(min(a / rho, b) for a, b in zip(p, q, strict=True))
        for node in below:
            drafted = drafts[node].token
            if chance.accept(node, ratio(p[drafted], rho * q[drafted])):
                same = [other for other in below if drafts[other].token == drafted]
                places, offset = [node, *(other for other in same if other != node)], offset + 1
                break
        else:
            each = (1 - (1 - beta) ** count) / beta if beta > 0 else 0
            weights = [max(a - min(a / rho, b) * each, 0) for a, b in zip(p, q, strict=True)]
            return Stop(places[0], chance.draw(offset, norm(weights, p), True))


def _factor(p: Row, q: Row, count: int) -> Number:
    low, high = 1.0, float(count)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        beta = sum(min(a / middle, b) for a, b in zip(p, q, strict=True))
        if 1 - (1 - beta) ** count <= middle * beta:
            high = middle
        else:
            low = middle
    return high


def traversal(drafts: Sequence[Draft], rows: Sequence[Row], chance: Chance) -> Stop:
    stop: list[Stop] = []

    def visit(place: int, rate: Number) -> bool:
        rest, below = rows[place + 1], children(drafts, place)
        for node in below:
            law, drafted = drafts[node].law, drafts[node].token
            weight = law[drafted]
            if visit(node, min(rate * rest[drafted] / weight, 1) if weight > 0 else 0):
                return True
            left = excess(rest, law, rate)
            rest, total = norm(left, rest), sum(left)
            rate = total / (total + 1 - rate) if total + 1 - rate > 0 else 1
        if place < 0 or chance.accept(place, rate):
            stop.append(Stop(place, chance.draw(depth(drafts, place), rest, bool(below))))
            return True
        return False

    visit(-1, 1)
    return stop[0]


def typical(epsilon: float, alpha: float) -> Rule:
    def rule(drafts: Sequence[Draft], rows: Sequence[Row], chance: Chance) -> Stop:
        accepted = {-1: 0.0}  # place -> ln p of its path
        for node, draft in enumerate(drafts):
            row = rows[draft.parent + 1]
            entropy = -sum(a * math.log(a) for a in row if a > 0)
            if draft.parent in accepted and row[draft.token] > min(epsilon, alpha * math.exp(-entropy)):
                accepted[node] = accepted[draft.parent] + math.log(row[draft.token])

        def ranks(place: int) -> list[int]:
            """Where the place stands in a depth-first walk."""
            parent = drafts[place].parent if place >= 0 else -1
            return [] if place < 0 else [*ranks(parent), children(drafts, parent).index(place)]

        deepest = max(depth(drafts, place) for place in accepted)
        best = [place for place in accepted if depth(drafts, place) == deepest]
        most = max(accepted[place] for place in best)
        place = min((place for place in best if accepted[place] == most), key=ranks)
        return Stop(place, chance.draw(deepest, rows[place + 1], False))

    return rule


LOSSLESS: Mapping[str, Rule] = {
    "match": match,
    "token": token,
    "block": block,
    "rrs": rrs,
    "kseq": kseq,
    "hu": hu,
    "traversal": traversal,
}
