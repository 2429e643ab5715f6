"""Exact laws of randomised programs: every outcome of every decision, with its probability.

Numbers of one key are drawn once. Asking again about a number whose interval is known tells only what is left to know,
so programs that use a number twice have exact laws as well. Numbers are floats or fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import product
from typing import Any, Protocol

from spec_decode.verify.reference import Draft, Number, Row, Rule, depth, path

Tokens = tuple[int, ...]
Model = Callable[[Tokens], Row]  # the next token's law, by all tokens so far


class Explorer:
    """One run of a program: decisions as scripted, then the first possible ones."""

    def __init__(self, script: Sequence[int] = ()) -> None:
        self._script = script
        self.taken: list[tuple[int, int]] = []  # per decision: which of how many possible outcomes
        self.probability: Number = Fraction(1)  # turns into a float with the first float
        self._known: dict[Hashable, tuple[Row, int]] = {}
        self._intervals: dict[Hashable, tuple[Number, Number]] = {}

    def choose(self, weights: Row, key: Hashable) -> int:
        """Index of the weight below which the number of this key falls in the cumulative sum."""
        if key in self._known:
            return self._choose_again(weights, key)
        options = [index for index, weight in enumerate(weights) if weight > 0]
        chosen = options[self._take(len(options))]
        self.probability = self.probability * weights[chosen] / sum(weights)
        self._known[key] = weights, chosen
        return chosen

    def _choose_again(self, weights: Row, key: Hashable) -> int:
        low, high = self._intervals.get(key) or _cell(*self._known[key])
        cells = {}
        for index, weight in enumerate(weights):
            if weight > 0:
                left, right = _cell(weights, index)
                left, right = max(left, low), min(right, high)
                if right > left:
                    cells[index] = left, right
        chosen = list(cells)[self._take(len(cells))]
        left, right = self._intervals[key] = cells[chosen]
        self.probability *= (right - left) / sum(b - a for a, b in cells.values())
        return chosen

    def _take(self, count: int) -> int:
        turn = len(self.taken)
        index = self._script[turn] if turn < len(self._script) else 0
        self.taken.append((index, count))
        return index


def _cell(weights: Row, index: int) -> tuple[Number, Number]:
    total, before = sum(weights), sum(weights[:index])
    return before / total, (before + weights[index]) / total


def law(program: Callable[[Explorer], Any]) -> dict[Any, Number]:
    """Probability of everything that the program can return."""
    found: dict[Any, Number] = {}
    script: list[int] | None = []
    while script is not None:
        run = Explorer(script)
        outcome = program(run)
        found[outcome] = found.get(outcome, 0) + run.probability
        taken = run.taken
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        script = [*(index for index, _ in taken[:-1]), taken[-1][0] + 1] if taken else None
    return found


class Keys(Protocol):
    """Under which key the numbers of a step are drawn."""

    def __call__(self, purpose: str, start: int, offset: int, node: int) -> Hashable: ...


def specified(purpose: str, start: int, offset: int, node: int) -> Hashable:
    """Tokens that are emitted by their position; drafts and their tests by the step's beginning and the node."""
    return (purpose, start + offset) if purpose in ("draw", "residual") else (purpose, start, node)


def shared(purpose: str, start: int, offset: int, node: int) -> Hashable:
    """Drafts are drawn with the numbers that the tokens emitted at their positions are drawn with."""
    return specified("accept", start, offset, node) if purpose == "accept" else ("draw", start + offset)


Pick = Callable[[int, Row], int]  # (node, weights) -> token: how a drafter draws
Drafter = Callable[[Tokens, Pick], list[Draft]]


class Step:
    """Decisions of one step, for drafter and rule."""

    def __init__(self, run: Explorer, start: int, keys: Keys = specified) -> None:
        self._run, self._start, self._keys = run, start, keys
        self.drafts: list[Draft] = []

    def pick(self, node: int, weights: Row) -> int:
        """A drafted token. Of a chain, which is all that keys by position are tried with, nodes are offsets."""
        return self._run.choose(weights, self._keys("draft", self._start, node, node))

    def accept(self, node: int, probability: Number) -> bool:
        offset = depth(self.drafts, node) - 1
        key = self._keys("accept", self._start, offset, node)
        return self._run.choose([probability, 1 - probability], key) == 0

    def draw(self, offset: int, weights: Row, correction: bool) -> int:
        return self._run.choose(weights, self._keys("residual" if correction else "draw", self._start, offset, 0))


def emit(
    run: Explorer, prefix: Tokens, target: Model, drafter: Drafter, rule: Rule, keys: Keys = specified
) -> tuple[Tokens, int]:
    """(tokens, how many of them were accepted drafts) of one step behind these output tokens."""
    step = Step(run, len(prefix), keys)
    drafts = step.drafts = drafter(prefix, step.pick)
    rows = [target((*prefix, *path(drafts, place))) for place in range(-1, len(drafts))]
    stop = rule(drafts, rows, step)
    accepted = path(drafts, stop.place)
    return (*accepted, stop.token), len(accepted)


def joint(outcomes: Mapping[Tokens, Number], target: Model, vocab: int, length: int) -> dict[Tokens, Number]:
    """Law of the first tokens, where what a program has not emitted comes from the target."""
    found: dict[Tokens, Number] = dict.fromkeys(product(range(vocab), repeat=length), 0)
    for tokens, weight in outcomes.items():
        begun = tokens[:length]
        for rest in product(range(vocab), repeat=length - len(begun)):
            found[(*begun, *rest)] += weight * probability(target, begun, rest)
    return found


def probability(target: Model, prefix: Tokens, tokens: Iterable[int]) -> Number:
    """Of tokens that follow a prefix."""
    result: Number = 1
    for token in tokens:
        result *= target(prefix)[token]
        prefix = (*prefix, token)
    return result


def error(outcomes: Mapping[Tokens, Number], target: Model, vocab: int, length: int) -> Number:
    """Largest difference between the law of the first tokens and the target's."""
    found = joint(outcomes, target, vocab, length)
    return max(abs(weight - probability(target, (), tokens)) for tokens, weight in found.items())


def steps_error(
    target: Model, drafter: Drafter, rule: Rule, vocab: int, length: int, steps: int = 1, keys: Keys = specified
) -> Number:
    """`error` of some steps, one after the other."""

    def program(run: Explorer) -> Tokens:
        tokens: Tokens = ()
        for _ in range(steps):
            tokens += emit(run, tokens, target, drafter, rule, keys)[0]
        return tokens

    return error(law(program), target, vocab, length)


def accepted(target: Model, drafter: Drafter, rule: Rule) -> tuple[Number, Number]:
    """(probability that a draft is accepted, expected number of accepted ones) of the first step."""
    lengths = law(lambda run: emit(run, (), target, drafter, rule)[1])
    return 1 - lengths.get(0, 0), sum(length * weight for length, weight in lengths.items())
