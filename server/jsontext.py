"""JSON as it goes over the wire: compact, UTF-8, finite numbers only. Knows nothing about its content."""

from __future__ import annotations

import json
from typing import Any

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def dumps(value: Any) -> bytes:
    return _encoder.encode(value).encode()


def dumps_by_choice(body: dict[str, Any]) -> bytes:
    """The same bytes; the encoder, which stops all other threads, runs for one choice at a time."""
    parts = []
    for name, value in body.items():
        text = b"[" + b",".join(map(dumps, value)) + b"]" if name == "choices" else dumps(value)
        parts.append(dumps(name) + b":" + text)
    return b"{" + b",".join(parts) + b"}"
