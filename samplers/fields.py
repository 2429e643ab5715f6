"""Objects in requests: their fields, before anybody looks at the values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from samplers.contract import SamplerError


def fields_of(value: Any, path: str, known: Collection[str]) -> dict[str, Any]:
    """The fields of an object, those that are null left out. Raises SamplerError for anything else, and for a field
    that is none of the known ones."""
    if not isinstance(value, Mapping):
        raise SamplerError(f"'{path}' must be an object", path)
    for name in value:
        if name not in known:
            raise SamplerError(f"'{path}' has no field '{name}'; it has {', '.join(known)}", f"{path}.{name}")
    return {name: part for name, part in value.items() if part is not None}
