"""An answer inside JSON, found by a path.

Paths are the singular queries of RFC 9535 (section 2.3.5.1): `$`, then names (`.name`, `['name']`, `["name"]`) and
indices (`[0]`, `[-1]`). They lead to one value at most, in one step per segment; filters, slices and wildcards do not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from samplers.contract import SamplerError
from voting.answers.finders import last_code

LONGEST = 1000  # characters of a path
_SEGMENT = re.compile(
    r"\s*(?:\.(?P<name>[^\W\d]\w*)"
    r"|\[\s*(?:(?P<index>0|-?[1-9]\d{0,15})|\"(?P<double>(?:[^\"\\]|\\.)*)\"|'(?P<single>(?:[^'\\]|\\.)*)')\s*\])"
)


class _Number(str):
    """A JSON number as it is spelled."""


class JsonPath:
    """What a path leads to in a text's JSON: all of the text, its last fenced code block or its last line."""

    def __init__(self, path: str, where: str) -> None:
        """Raises SamplerError, naming `where`, for what is no singular query."""
        if len(path) > LONGEST:
            raise SamplerError(f"'{where}' is longer than {LONGEST} characters", where)
        if not path.startswith("$"):
            raise SamplerError(f"'{where}' must begin with $", where)
        self._segments: list[Any] = []  # names are strings, indices integers
        place = 1
        while place < len(path):
            found = _SEGMENT.match(path, place)
            segment = found and _segment(found)
            if found is None or segment is None:
                message = f"'{where}' has no name or index of a singular JSON path at character {place}"
                raise SamplerError(message, where)
            self._segments.append(segment)
            place = found.end()

    def __call__(self, text: str) -> str | None:
        """A string as it is, other values in JSON; null is no answer."""
        try:
            return _spelled(self._value(text))
        except (LookupError, ValueError, RecursionError):
            return None

    def _value(self, text: str) -> Any:
        value = _parsed(text)
        for segment in self._segments:
            kind = list if isinstance(segment, int) else dict
            if type(value) is not kind:
                raise LookupError(segment)
            value = value[segment]
        return value


def _segment(found: re.Match[str]) -> str | int | None:
    """None for escapes that JSON does not know."""
    if found["index"] is not None:
        return int(found["index"])
    if found["name"] is not None:
        return found["name"]
    inner = found["double"]
    if inner is None:  # single quotes: as JSON spells it
        inner = re.sub(r"\\.|\"", lambda part: {r"\'": "'", '"': r"\""}.get(part[0], part[0]), found["single"])
    try:
        return str(json.loads(f'"{inner}"'))
    except ValueError:
        return None


def _parsed(text: str) -> Any:
    """Raises ValueError if no candidate is JSON."""
    for candidate in _candidates(text):
        try:
            return json.loads(candidate, parse_int=_Number, parse_float=_Number, parse_constant=_refuse)
        except ValueError:
            continue
    raise ValueError("no JSON")


def _candidates(text: str) -> Iterator[str]:
    yield text
    yield last_code(text) or ""
    yield text.rstrip().rpartition("\n")[2]


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _spelled(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else _dumped(value)


def _dumped(value: Any) -> str:
    """Compact JSON with sorted names and numbers as they were spelled."""
    if isinstance(value, _Number):
        return value
    if isinstance(value, list):
        return f"[{','.join(map(_dumped, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{json.dumps(name)}:{_dumped(value[name])}' for name in sorted(value))}}}"
    return json.dumps(value, ensure_ascii=False)
