"""Errors as they appear on the wire: one exception, one JSON shape, one mapping from everything that can go wrong.

Knows no route and no field; whoever finds a fault names it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from starlette.responses import Response

from engine.runners.base import EngineFailed, Overloaded, TooLarge, Unsupported
from samplers.contract import SamplerError
from server.jsontext import dumps
from spec_decode.facts import SpecError

log = logging.getLogger(__name__)
RETRY_AFTER_S = 1
LONGEST_MESSAGE = 1000  # characters; messages quote what the client sent

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}  # others by their class


@dataclass
class ApiError(Exception):
    """What the client is told. `param` is the dotted path of the field at fault."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": _cut(self.message), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return Response(dumps(self.body()), self.status, self.headers, media_type="application/json")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}..."


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param, code)


def refuse(message: str, param: str | None = None, code: str | None = None) -> NoReturn:
    """Raise a 400."""
    raise bad_request(message, param, code)


def check_ids(ids: Sequence[int], param: str, vocab_size: int) -> None:
    """Refuse the first id that the model does not have."""
    if ids and max(ids) >= vocab_size:
        at = next(at for at, token in enumerate(ids) if token >= vocab_size)
        refuse(f"'{param}[{at}]' is outside the vocabulary of {vocab_size}", f"{param}[{at}]")


def unavailable(param: str, what: str) -> ApiError:
    """A field the interface defines and no runner of this build can honour."""
    return ApiError(400, f"'{param}': {what} not available in this build", param, "unsupported_by_runner")


def too_long(message: str, param: str | None) -> ApiError:
    return ApiError(400, message, param, "context_length_exceeded")


def overloaded(message: str) -> ApiError:
    return ApiError(503, message, None, "overloaded", {"retry-after": str(RETRY_AFTER_S)})


def internal() -> ApiError:
    message = "the server failed to process the request"
    return ApiError(500, message, None, "internal_error", {"x-should-retry": "false"})


def to_api_error(error: Exception) -> ApiError:
    """The wire form of any exception; unknown ones are logged with their trace and shown without it."""
    match error:
        case ApiError():
            return error
        case SpecError():
            return bad_request(str(error), error.param, error.code)
        case SamplerError():
            return bad_request(str(error), error.param)
        case Overloaded() | EngineFailed():
            return overloaded(str(error) or "the server is too busy")
        case TooLarge():
            return too_long(str(error), None)
        case Unsupported():
            return bad_request(str(error), error.param, "unsupported_by_runner")
        case _:
            log.error("unhandled exception", exc_info=error)
            return internal()
