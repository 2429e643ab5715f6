"""Answers that are numbers, read exactly: rung 1 of the ladder (voting.md section 17)."""

from __future__ import annotations

import re
from fractions import Fraction

MOST_DIGITS = 400  # of a number, all its parts together
LARGEST_EXPONENT = 400
_LONGEST = 2 * MOST_DIGITS  # characters; whatever is longer is no number

_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_TIMES_TEN = r" ?(?:\\times|\\cdot|×|\*) ?10 ?\^ ?"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?) ?(?:"
    rf"(?P<decimal>{_DECIMAL})(?:[eE](?P<e>[+-]?\d+)|{_TIMES_TEN}(?P<power>\d+|{{ ?[+-]?\d+ ?}}))?"
    rf"|(?P<above>{_DECIMAL}) ?/ ?(?P<below>{_DECIMAL})"
    rf"|\\frac ?{{ ?(?P<top>[+-]?{_DECIMAL}) ?}} ?{{ ?(?P<bottom>[+-]?{_DECIMAL}) ?}}"
    rf")(?P<percent> ?\\?%)?",
    re.ASCII,
)


def rational(text: str, *, percent_is_value: bool) -> Fraction | None:
    """The number that a normalised answer spells: integer, decimal, a/b, \\frac{a}{b} or scientific. None if it is
    none, or too large to be read (`MOST_DIGITS`, `LARGEST_EXPONENT`).

    percent_is_value: 50% is 1/2, and not 50.
    """
    if len(text) > _LONGEST or sum(map(str.isdecimal, text)) > MOST_DIGITS:
        return None
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    value = _value(found)
    if value is None:
        return None
    if found["sign"] == "-":
        value = -value
    return value / 100 if found["percent"] and percent_is_value else value


def _value(found: re.Match[str]) -> Fraction | None:
    if found["decimal"] is None:
        below = Fraction(found["below"] or found["bottom"])
        return Fraction(found["above"] or found["top"]) / below if below else None
    exponent = int((found["e"] or found["power"] or "0").strip("{ }"))
    return None if abs(exponent) > LARGEST_EXPONENT else Fraction(found["decimal"]) * Fraction(10) ** exponent
