"""Bearer keys: who may call. Knows nothing about what is called."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from server.errors import ApiError

OPEN_PATHS = frozenset({"/", "/health", "/metrics", "/docs", "/redoc", "/openapi.json"})


def check_key(authorization: str | None, keys: Sequence[str]) -> None:
    """Raises a 401 unless no keys are configured or one of them is given. Takes equally long for every wrong key."""
    if not keys:
        return
    scheme, _, given = (authorization or "").partition(" ")
    token = given.strip().encode("latin-1") if scheme.lower() == "bearer" else b""  # the bytes that were sent
    matches = [hmac.compare_digest(token, key.encode()) for key in keys]
    if not any(matches):
        message = "the API key is wrong" if token else "this server needs an API key: 'Authorization: Bearer <key>'"
        raise ApiError(401, message, None, "invalid_api_key", {"www-authenticate": "Bearer"})
