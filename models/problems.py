"""Arithmetic word problems of two or three steps, with worked steps and a `#### answer` line.

Knows nothing about tokens or training. A problem is a pure function of its random generator, so a seed
names a data set. Operands stay at most 20 and results at most 60: a small model can learn that many facts.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LARGEST_RESULT = 60
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
    if work.total >= 4 and (work.total > LARGEST_RESULT - 20 or rng.random() < 0.5):
        b = rng.randint(2, min(20, work.total - 1))
        work.apply("-", b)
        return rng.choice(_LOSS).format(b=b)
    b = rng.randint(2, 20)
    work.apply("+", b)
    return rng.choice(_GAIN).format(b=b)


def _chain(rng: random.Random) -> Problem:
    name, pronoun = _person(rng)
    items = rng.choice(_ITEMS)
    work = _Work(rng.randint(3, 20))
    text = f"{name} has {work.total} {items}."
    for word in ("", "Then "):
        who = pronoun if not word else pronoun.lower()
        text += f" {word}{who} {_change(rng, work)}."
    if rng.random() < 0.4:
        text += f" At last {pronoun.lower()} {_change(rng, work)}."
    return work.problem(f"{text} How many {items} does {name} have now?")


def _containers(rng: random.Random) -> Problem:
    name, pronoun = _person(rng)
    items, boxes = rng.choice(_ITEMS), rng.choice(_BOXES)
    each, count = rng.randint(2, 10), rng.randint(2, 5)
    work = _Work(each)
    work.apply("*", count)
    text = f"{name} has {count} {boxes} with {each} {items} in each. {pronoun} {_change(rng, work)}."
    return work.problem(f"{text} How many {items} does {name} have now?")


def _compare(rng: random.Random) -> Problem:
    name, _ = _person(rng)
    other = rng.choice([n for names in _NAMES.values() for n in names if n != name])
    items = rng.choice(_ITEMS)
    first = rng.randint(3, 20)
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
    price, count = rng.randint(2, 10), rng.randint(2, 5)
    cost = price * count
    paid = rng.choice([p for p in (20, 30, 40, 50, 60) if p > cost])
    steps = f"{price} * {count} = {cost}\n{paid} - {cost} = {paid - cost}\n#### {paid - cost}"
    text = f"{name} buys {count} {item} for {price} dollars each. {pronoun} pays with {paid} dollars."
    return Problem(f"{text} How much change does {name} get?", steps, paid - cost)


def _share(rng: random.Random) -> Problem:
    name, pronoun = _person(rng)
    items = rng.choice(_ITEMS)
    friends, each = rng.randint(2, 5), rng.randint(2, 8)
    total = friends * each
    first = rng.randint(2, min(20, total - 2))
    if total - first > 20:
        first = total - 20
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
