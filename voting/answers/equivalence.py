"""Which answers are the same: `voting.equiv` of a request, and the canonical keys of rungs 0 to 2 (voting.md 17).

Keys make an equivalence relation by construction. What cannot be a key (`percent` published, math-verify) merges keys
in `clusters.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any, NamedTuple

from samplers.contract import Param
from voting.answers.fields import as_object, check_names, one_of
from voting.answers.normal import normalise
from voting.answers.rational import rational

_OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "string": (),
        "exact": ("percent",),
        "math_verify": ("percent", "symmetric", "equiv_budget_ms"),
        "published": (),
    }
)
_PERCENT = Param("percent", str, "value", choices=("value", "unit", "published"))
_SYMMETRIC = Param("symmetric", str, "and", choices=("and", "or"))
_BUDGET = Param("equiv_budget_ms", int, 5000, low=0, high=60_000)


class Key(NamedTuple):
    """The canonical form of an answer, and the rung that it was found on."""

    text: str
    rung: int  # 0 string, 1 number, 2 option
    spelling: str  # the normalised answer
    number: Fraction | None = None


@dataclass(frozen=True)
class Equivalence:
    """How far up the ladder answers are compared."""

    numbers: bool = True  # rungs 1 and 2
    percent: str = "value"  # 50% is 'value' 1/2, 'unit' 50, 'published' any of them (not a relation of keys)
    math_verify: bool = False  # rung 3
    symmetric: str = "and"  # which orders of a pair math-verify has to agree in: 'and' both, 'or' one
    budget_s: float = 5.0  # of math-verify, per vote

    def keys(self, answers: Iterable[tuple[str, bool]], normal: dict[str, str] | None = None) -> list[Key]:
        """The key of each (answer, whether it is an option). An answer that is an option once is one wherever it is
        spelled alike, so that no rung splits what a lower one merges. normal: as of `partition`."""
        given = list(answers)
        normal = {} if normal is None else normal
        normal.update({answer: normalise(answer) for answer in {answer for answer, _ in given} - normal.keys()})
        spelled = [(normal[answer], option) for answer, option in given]
        letters = {text for text, option in spelled if option} if self.numbers else set()
        known = {text: self._key(text, letters) for text in {text for text, _ in spelled}}
        return [known[text] for text, _ in spelled]

    def _key(self, text: str, letters: Collection[str]) -> Key:
        if text in letters:
            return Key(text.upper(), 2, text)
        number = rational(text, percent_is_value=self.percent != "unit") if self.numbers else None
        return Key(text, 0, text) if number is None else Key(str(number), 1, text, number)


def read_equivalence(value: Any, path: str = "voting.equiv") -> Equivalence:
    """What a request asks for: a name, or an object with one and its options, such as {"name": "math_verify",
    "percent": "unit", "symmetric": "or"}. Raises SamplerError with a dotted path.
    """
    given = as_object(value, path)
    check_names(given, ("name", *_OPTIONS["math_verify"]), path)
    name = one_of(given.get("name"), _OPTIONS, path if isinstance(value, str) else f"{path}.name")
    check_names(given, ("name", *_OPTIONS[name]), path)

    def option(param: Param) -> Any:
        return param.check(given.get(param.name, param.neutral), f"{path}.{param.name}")

    return Equivalence(
        numbers=name != "string",
        percent="published" if name == "published" else option(_PERCENT),
        math_verify=name == "math_verify",
        symmetric=option(_SYMMETRIC),
        budget_s=option(_BUDGET) / 1000,
    )
