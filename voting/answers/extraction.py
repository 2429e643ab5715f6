"""Which part of a completion is its answer: `voting.extract` of a request (voting.md section 17)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from samplers.contract import Param
from voting.answers.fields import a_string, as_object, check_names, one_of
from voting.answers.finders import (
    after_hash,
    after_phrase,
    as_option,
    last_boxed,
    last_code,
    last_number,
    last_option,
)
from voting.answers.json_path import JsonPath
from voting.answers.normal import normalise
from voting.answers.patterns import LastMatch

Find = Callable[[str], str | None]

_FINDERS: Mapping[str, Find] = MappingProxyType(
    {
        "hash": after_hash,
        "code": last_code,
        "boxed": last_boxed,
        "last_number": last_number,
        "mcq": last_option,
        "whole": str.strip,
    }
)
_NAMES = (*_FINDERS, "auto")
_KINDS = ("name", "regex", "json_path")
_FIELDS = (*_KINDS, "group", "allow_last_number")
_GROUP = Param("group", int, 0, low=0, high=100)
_ALLOW_LAST_NUMBER = Param("allow_last_number", bool, False)


@dataclass(frozen=True)
class Extracted:
    """An answer as a completion spells it; an option is its letter in upper case."""

    answer: str
    option: bool = False


@dataclass(frozen=True)
class Extraction:
    """One way to find answers, checked. Pure, linear in the text, and safe on whatever a model writes."""

    find: Find | None  # None: by what the text has, `auto`
    options: bool = False  # what `find` finds are letters of options
    allow_last_number: bool = False  # of `auto`

    def answer(
        self, text: str, *, lists_options: bool = False, end_of_reasoning: str | None = None
    ) -> Extracted | None:
        """The answer of a completion. None if there is none, or nothing is left of it once it is normalised.

        lists_options: the prompt does (`finders.lists_options`); read by `auto`.
        end_of_reasoning: the model's marker. Where it occurs, answers stand after its last occurrence.
        """
        if end_of_reasoning:
            text = text.rpartition(end_of_reasoning)[2]
        text = _encodable(text)
        found = self._auto(text, lists_options) if self.find is None else self._extracted(self.find(text))
        if found is None or not normalise(found.answer):
            return None
        return Extracted(_encodable(found.answer), found.option)

    def _extracted(self, answer: str | None) -> Extracted | None:
        return None if answer is None else Extracted(answer, self.options)

    def _auto(self, text: str, lists_options: bool) -> Extracted | None:
        for find in (after_hash, last_boxed, after_phrase):
            if answer := find(text):
                letter = as_option(answer) if lists_options else None
                return Extracted(letter or answer, letter is not None)
        if lists_options and (letter := last_option(text)):
            return Extracted(letter, True)
        number = last_number(text) if self.allow_last_number else None
        return None if number is None else Extracted(number)


def read_extraction(value: Any, path: str = "voting.extract") -> Extraction:
    """What a request asks for: a name, {"name": "auto", "allow_last_number": true}, {"regex": ..., "group": 1} or
    {"json_path": ...}. Raises SamplerError with a dotted path.
    """
    given = as_object(value, path)
    check_names(given, _FIELDS, path)
    kind = next((kind for kind in _KINDS if kind in given), "name")
    if kind == "regex":
        check_names(given, ("regex", "group"), path)
        group = int(_GROUP.check(given["group"], f"{path}.group")) if "group" in given else None
        return Extraction(LastMatch(a_string(given["regex"], f"{path}.regex"), group, path))
    if kind == "json_path":
        check_names(given, ("json_path",), path)
        where = f"{path}.json_path"
        return Extraction(JsonPath(a_string(given["json_path"], where), where))
    name = one_of(given.get("name"), _NAMES, path if isinstance(value, str) else f"{path}.name")
    if name != "auto":
        check_names(given, ("name",), path)
        return Extraction(_FINDERS[name], options=name == "mcq")
    check_names(given, ("name", "allow_last_number"), path)
    allowed = _ALLOW_LAST_NUMBER.check(given.get("allow_last_number", False), f"{path}.allow_last_number")
    return Extraction(None, allow_last_number=bool(allowed))


def _encodable(text: str) -> str:
    """Without unpaired surrogates, which neither RE2 nor a response can take."""
    return text if text.isascii() else text.encode(errors="replace").decode()
