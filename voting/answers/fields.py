"""The shape of what a request says about answers: a name, or an object with one and its options."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from samplers.contract import SamplerError


def as_object(value: Any, path: str) -> dict[str, Any]:
    """ "boxed" is short for {"name": "boxed"}. Fields that are null are left out. Raises SamplerError."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        raise SamplerError(f"'{path}' must be a string or an object", path)
    return {name: part for name, part in value.items() if part is not None}


def check_names(given: Mapping[str, Any], known: Collection[str], path: str) -> None:
    """Raises SamplerError for a field that is none of these."""
    for name in given:
        if name not in known:
            raise SamplerError(f"'{path}' has no field '{name}' here; it has {', '.join(known)}", f"{path}.{name}")


def one_of(name: Any, known: Collection[str], path: str) -> str:
    """Raises SamplerError, listing the known names."""
    if not isinstance(name, str) or name not in known:
        raise SamplerError(f"'{path}' must be one of {', '.join(known)}", path)
    return name


def a_string(value: Any, path: str) -> str:
    """Raises SamplerError."""
    if not isinstance(value, str) or not value:
        raise SamplerError(f"'{path}' must be a string that is not empty", path)
    return value
