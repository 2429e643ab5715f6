"""Ends work whose client has gone away, before and during the response. Knows nothing about the work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed its connection; nobody reads an answer."""


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, or ClientGone after cancelling it. The request's body must have been read."""
    task = asyncio.ensure_future(work)
    await _first(task, asyncio.ensure_future(_gone(receive)))
    if task.cancelled():
        raise ClientGone
    return task.result()


async def _first(work: asyncio.Future[Any], watch: asyncio.Future[None]) -> None:
    """Wait until one is done, then cancel whatever is not, and wait for that too."""
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in (work, watch):
            future.cancel()
        await asyncio.gather(work, watch, return_exceptions=True)


class EventStream(Response):
    """A server-sent event stream; ends the work behind it as soon as the client is gone."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], work: AsyncGenerator[Any]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._work = work  # what `events` reads; closed here too, because `events` may never have been started

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.ensure_future(self._send(send))
        try:
            await _first(sender, asyncio.ensure_future(_gone(receive)))
        finally:
            await self._events.aclose()
            await self._work.aclose()
        if sender.cancelled():
            raise ClientGone
        if isinstance(error := sender.exception(), OSError):
            raise ClientGone from error
        sender.result()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for events in self._events:
            await send({"type": "http.response.body", "body": events, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
