"""Decode requests as tests of the runner say them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from engine.request import DecodeRequest
from samplers.chain import resolve

_NUMBERS = count()


def decode_request(fields: Mapping[str, Any] | None = None, vocab: int = 4096, **options: Any) -> DecodeRequest:
    """fields: sampling fields, as of an HTTP request."""
    usual: dict[str, Any] = {"prompt_ids": (40, 41, 42), "seed": 7, "max_tokens": 8}
    return DecodeRequest(id=f"test-{next(_NUMBERS)}", chain=resolve(fields or {}, vocab), **(usual | options))
