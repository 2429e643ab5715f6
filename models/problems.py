"""Arithmetic word problems of two to five steps, with worked steps and a `#### answer` line.

Knows nothing about tokens or training. A problem is a pure function of its random generator, so a seed
names a data set. Operands stay at most 50 and results at most 100: a small model can learn that many facts, and
still slips often enough on the longer problems for votes and samplers to differ.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LARGEST_OPERAND = 50
LARGEST_RESULT = 100
HELD_OUT_SHARE = 16  # one question in this many is never trained on

_NAMES = {
    "She": ("Mia", "Anna", "Lena", "Sara", "Emma", "Nora", "Ida", "Ruth"),
    "He": ("Tom", "Ben", "Paul", "Max", "Leo", "Omar", "Jan", "Sam"),
}
_ITEMS = ("apples", "books", "coins", "cards", "pens", "eggs", "stamps", "shells", "marbles", "stickers")
_GAIN = ("buys {b} more", "finds {b} more", "gets {b} more from a friend", "wins {b} more")
_LOSS = ("gives away {b}", "loses {b}", "sells {b}", "gives {b} to a friend")
_BOXES = ("bags", "boxes", "baskets", "jars")


@dataclass(frozen=True)
class Problem:
    """A question, its worked solution (ending in `#### answer`) and the answer."""

    question: str
    solution: str
    answer: int

    @property
    def held_out(self) -> bool:
        """True for the fixed share of questions that training never sees, decided by the text alone."""
        return zlib.crc32(self.question.encode()) % HELD_OUT_SHARE == 0


class _Work:
    """A running total and the written steps that produced it."""

    def __init__(self, start: int) -> None:
        self.total = start
        self.steps: list[str] = []

    def apply(self, sign: str, b: int) -> int:
        a = self.total
        self.total = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
        self.steps.append(f"{a} {sign} {b} = {self.total}")
        return self.total

    def problem(self, question: str) -> Problem:
        return Problem(question, "\n".join(self.steps) + f"\n#### {self.total}", self.total)


def _person(rng: random.Random) -> tuple[str, str]:
    pronoun = rng.choice(sorted(_NAMES))
    return rng.choice(_NAMES[pronoun]), pronoun


def _change(rng: random.Random, work: _Work) -> str:
    """One gain or loss applied to `work`; returns its phrase."""
    if work.total >= 4 and (work.total > LARGEST_RESULT - LARGEST_OPERAND or rng.random() < 0.5):
        b = rng.randint(2, min(LARGEST_OPERAND, work.total - 1))
        work.apply("-", b)
        return rng.choice(_LOSS).format(b=b)
    b = rng.randint(2, LARGEST_OPERAND)
    work.apply("+", b)
    return rng.choice(_GAIN).format(b=b)


def _chain(rng: random.Random) -> Problem:
    name, pronoun = _person(rng)
    items = rng.choice(_ITEMS)
    work = _Work(rng.randint(3, LARGEST_OPERAND))
    text = f"{name} has {work.total} {items}. {pronoun} {_change(rng, work)}."
    for _ in range(rng.randint(1, 3)):
        text += f" Then {pronoun.lower()} {_change(rng, work)}."
    text += f" At last {pronoun.lower()} {_change(rng, work)}."
    return work.problem(f"{text} How many {items} does {name} have now?")


def _containers(rng: random.Random) -> Problem:
    name, pronoun = _person(rng)
    items, boxes = rng.choice(_ITEMS), rng.choice(_BOXES)
    each, count = rng.randint(2, 12), rng.randint(2, 8)
    work = _Work(each)
    work.apply("*", count)
    text = f"{name} has {count} {boxes} with {each} {items} in each. {pronoun} {_change(rng, work)}."
    if rng.random() < 0.5:
        text += f" Then {pronoun.lower()} {_change(rng, work)}."
    return work.problem(f"{text} How many {items} does {name} have now?")


def _compare(rng: random.Random) -> Problem:
    name, _ = _person(rng)
    other = rng.choice([n for names in _NAMES.values() for n in names if n != name])
    items = rng.choice(_ITEMS)
    first = rng.randint(3, 40)
    work = _Work(first)
    if first > 4 and rng.random() < 0.5:
        b = rng.randint(2, first - 2)
        work.apply("-", b)
        relation = f"{b} fewer"
    else:
        b = rng.randint(2, 20)
        work.apply("+", b)
        relation = f"{b} more"
    work.apply("+", first)
    text = f"{name} has {first} {items}. {other} has {relation} {items} than {name}."
    return work.problem(f"{text} How many {items} do they have together?")


def _change_money(rng: random.Random) -> Problem:
    name, pronoun = _person(rng)
    item = rng.choice(_ITEMS)
    price, count = rng.randint(2, 12), rng.randint(2, 8)
    cost = price * count
    paid = rng.choice([p for p in (20, 50, 100) if p > cost])
    steps = f"{price} * {count} = {cost}\n{paid} - {cost} = {paid - cost}\n#### {paid - cost}"
    text = f"{name} buys {count} {item} for {price} dollars each. {pronoun} pays with {paid} dollars."
    return Problem(f"{text} How much change does {name} get?", steps, paid - cost)


def _share(rng: random.Random) -> Problem:
    name, pronoun = _person(rng)
    items = rng.choice(_ITEMS)
    friends, each = rng.randint(2, 8), rng.randint(2, 12)
    total = friends * each
    first = rng.randint(max(2, total - LARGEST_OPERAND), total - 2) if total > 4 else 2
    work = _Work(first)
    work.apply("+", total - first)
    work.apply("/", friends)
    text = (
        f"{name} has {first} {items}. {pronoun} {rng.choice(_GAIN).format(b=total - first)}."
        f" {pronoun} shares them equally among {friends} friends."
    )
    return work.problem(f"{text} How many {items} does each friend get?")


_KINDS: tuple[Callable[[random.Random], Problem], ...] = (_chain, _chain, _containers, _compare, _change_money, _share)


def problems(seed: int, held_out: bool) -> Iterator[Problem]:
    """An endless stream of problems: the held-out ones only, or all the others."""
    rng = random.Random(seed)
    while True:
        problem = rng.choice(_KINDS)(rng)
        if problem.held_out == held_out:
            yield problem


def answer_of(text: str) -> int | None:
    """The integer after the last `####`, or None when the text has no such line."""
    found = re.findall(r"####\s*(-?\d+)", text)
    return int(found[-1]) if found else None
