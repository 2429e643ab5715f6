"""What every HTTP exchange passes: request ids and counts outside, keys and errors inside.

Plain ASGI, so that streams and disconnects go through untouched. Knows nothing about bodies.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.auth import OPEN_PATHS, check_key
from server.disconnect import ClientGone
from server.errors import internal, overloaded, to_api_error
from server.state import ServerState

log = logging.getLogger(__name__)
SCOPE_KEY = "drafthouse.request"


@dataclass
class RequestInfo:
    """What is known about one exchange beyond ASGI."""

    request_id: str
    given: bool  # by the client's header
    status: int = 0  # 0 until the response has started


def suggest_request_id(connection: HTTPConnection, name: object) -> None:
    """Take a well-formed id found in the body, unless a header gave one."""
    info: RequestInfo = connection.scope[SCOPE_KEY]
    if isinstance(name, str) and not info.given:
        info.request_id = _valid_id(name.encode()) or info.request_id


class Envelope:
    """Outermost: gives every response an `x-request-id`, counts it, and answers 500 if all else failed."""

    def __init__(self, app: ASGIApp, state: ServerState, paths: frozenset[str]) -> None:
        self._app = app
        self._state = state
        self._paths = paths  # of the routes: what is refused before it is routed is counted under these

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = _valid_id(dict(scope["headers"]).get(b"x-request-id", b""))
        info = scope[SCOPE_KEY] = RequestInfo(given or f"req_{secrets.token_hex(12)}", given is not None)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                info.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", info.request_id.encode())]
            await send(message)

        self._state.in_flight += 1
        try:
            await self._app(scope, receive, send_with_id)
        except ClientGone:
            log.info("%s: the client went away", info.request_id)
        except Exception:
            log.exception("%s: unhandled exception", info.request_id)
            if not info.status:
                await internal().response()(scope, receive, send_with_id)
        finally:
            self._state.in_flight -= 1
            known = scope["path"] if scope["path"] in self._paths else "unmatched"
            route = getattr(scope.get("route"), "path", known)
            self._state.metrics.http.labels(route, str(info.status or 499)).inc()


class Gate:
    """Innermost: checks the key and whether the server takes requests, and turns exceptions into error objects."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            if scope["path"] not in OPEN_PATHS:
                check_key(HTTPConnection(scope).headers.get("authorization"), self._state.api_keys)
                if self._state.draining:
                    raise overloaded("the server is shutting down")
            await self._app(scope, receive, send)
        except (ClientGone, ClientDisconnect) as error:  # while it was read to or while it was still sending
            raise ClientGone from error
        except Exception as error:
            if scope[SCOPE_KEY].status:
                raise
            await to_api_error(error).response()(scope, receive, send)


def _valid_id(raw: bytes) -> str | None:
    valid = 1 <= len(raw) <= 128 and all(0x20 <= byte <= 0x7E for byte in raw)
    return raw.decode("ascii") if valid else None
