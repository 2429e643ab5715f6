"""JSON as it goes over the wire: compact, UTF-8, finite numbers only. Knows nothing about its content."""

from __future__ import annotations

import json
from typing import Any

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def dumps(value: Any) -> bytes:
    return _encoder.encode(value).encode()
