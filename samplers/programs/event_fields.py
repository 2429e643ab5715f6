"""The fields of an event in a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from samplers.contract import Param, SamplerError
from samplers.fields import fields_of
from samplers.model_facts import ModelFacts
from samplers.programs.classifiers import CLASSIFIERS
from samplers.programs.contract import Setting
from samplers.programs.events import RegexNot

LONGEST_REGEX = 1000  # characters
_MOST = 2**31 - 1
_N = Param("n", int, 1, low=1, high=256)
_MAX_COUNT = Param("max_count", int, 1, low=1, high=_MOST)
_THRESHOLD = Param("threshold", float, 0.5, low=0, high=1)


def parse(value: Any, path: str, model: ModelFacts) -> dict[str, Any]:
    """The parts of an event, checked and with their defaults, as JSON. Raises SamplerError."""
    parts = {}
    for name, part in fields_of(value, path, tuple(_PARSERS)).items():
        parts[name] = _PARSERS[name](part, f"{path}.{name}")
    if not parts.get("finished", True):
        del parts["finished"]
    if not parts:
        raise SamplerError(f"'{path}' asks for nothing; its parts: {', '.join(_PARSERS)}", path)
    if parts.get("min_len", 0) > parts.get("max_len", _MOST):
        raise SamplerError(f"'{path}' cannot come about: min_len is above max_len", path)
    if "regex_not" in parts and model.pieces is None:
        raise SamplerError(f"'{path}.regex_not' needs a model whose tokens' text is known", f"{path}.regex_not")
    return parts


def check(parts: Mapping[str, Any], setting: Setting) -> None:
    """Raises SamplerError for an event that the request's own limits exclude."""
    if parts.get("min_len", 0) > setting.max_tokens:
        raise SamplerError(f"'event' cannot come about: min_len is above max_tokens ({setting.max_tokens})", "event")
    if parts.get("max_len", _MOST) < setting.min_tokens:
        raise SamplerError(f"'event' cannot come about: max_len is below min_tokens ({setting.min_tokens})", "event")


def _needed(given: Mapping[str, Any], name: str, path: str) -> Any:
    if name not in given:
        raise SamplerError(f"'{path}.{name}' is missing", f"{path}.{name}")
    return given[name]


def _scalar(given: Mapping[str, Any], param: Param, path: str) -> Any:
    return param.check(given.get(param.name, param.neutral), f"{path}.{param.name}")


def _no_repeat(value: Any, path: str) -> dict[str, Any]:
    given = fields_of(value, path, ("n", "max_count"))
    _needed(given, "n", path)
    return {"n": _scalar(given, _N, path), "max_count": _scalar(given, _MAX_COUNT, path)}


def _no_prompt_copy(value: Any, path: str) -> dict[str, Any]:
    given = fields_of(value, path, ("n",))
    _needed(given, "n", path)
    return {"n": _scalar(given, _N, path)}


def _regex_not(value: Any, path: str) -> str:
    if not isinstance(value, str) or not value:
        raise SamplerError(f"'{path}' must be a string that is not empty", path)
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise SamplerError(f"'{path}' contains an unpaired surrogate", path)
    if len(value) > LONGEST_REGEX:
        raise SamplerError(f"'{path}' is longer than {LONGEST_REGEX} characters", path)
    RegexNot(value, path)
    return value


def _classifier(value: Any, path: str) -> dict[str, Any]:
    given = fields_of(value, path, ("id", "threshold"))
    name = _needed(given, "id", path)
    if not isinstance(name, str):
        raise SamplerError(f"'{path}.id' must be a string", f"{path}.id")
    CLASSIFIERS.get(name, f"{path}.id")
    return {"id": name, "threshold": _scalar(given, _THRESHOLD, path)}


_PARSERS: dict[str, Callable[[Any, str], Any]] = {
    "min_len": Param("min_len", int, 0, low=0, high=_MOST).check,
    "max_len": Param("max_len", int, _MOST, low=0, high=_MOST).check,
    "finished": Param("finished", bool, False).check,
    "no_repeat": _no_repeat,
    "no_prompt_copy": _no_prompt_copy,
    "regex_not": _regex_not,
    "classifier": _classifier,
}
