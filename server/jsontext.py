"""JSON as it goes over the wire: compact, UTF-8, finite numbers only. Knows nothing about its content."""

from __future__ import annotations

import json
from typing import Any

_ONE_BY_ONE = ("choices", "sample_records")  # lists of what may be long
_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def dumps(value: Any) -> bytes:
    return _encoder.encode(value).encode()


def dumps_in_parts(value: Any) -> bytes:
    """The same bytes; the encoder, which stops all other threads, runs for one choice or sample at a time."""
    if isinstance(value, dict):
        return b"{" + b",".join(dumps(str(name)) + b":" + _member(name, part) for name, part in value.items()) + b"}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return b"[" + b",".join(map(dumps_in_parts, value)) + b"]"
    return dumps(value)


def _member(name: str, value: Any) -> bytes:
    if name in _ONE_BY_ONE and isinstance(value, list):
        return b"[" + b",".join(map(dumps, value)) + b"]"
    return dumps_in_parts(value)
