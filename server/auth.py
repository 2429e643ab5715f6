"""Bearer keys: who may call. Knows nothing about what is called."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from server.errors import ApiError

OPEN_PATHS = frozenset({"/", "/health", "/metrics", "/docs", "/redoc", "/openapi.json"})


def check_key(authorization: str | None, keys: Sequence[str]) -> None:
    """Raises a 401 unless no keys are configured or one of them is given. Takes equally long for every wrong key."""
    if not keys:
        return
    token = _token(authorization)
    matches = [hmac.compare_digest(token, key.encode()) for key in keys]
    if not any(matches):
        message = "the API key is wrong" if token else "this server needs an API key: 'Authorization: Bearer <key>'"
        raise ApiError(401, message, None, "invalid_api_key", {"www-authenticate": "Bearer"})


def owner_of(authorization: str | None, keys: Sequence[str]) -> str:
    """A name for the key of a request that has been checked: equal for equal keys, and not the key. Empty where nobody
    needs one."""
    return fingerprint(_token(authorization)) if keys else ""


def fingerprint(secret: bytes) -> str:
    return hashlib.sha256(b"drafthouse/" + secret).hexdigest()[:16]


def _token(authorization: str | None) -> bytes:
    """The bytes that were sent as a bearer token; none if there is no such token."""
    scheme, _, given = (authorization or "").partition(" ")
    return given.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
