"""Streamed completions asked at once, by a client that takes little time of the cores it shares with the server.

It reads bytes as they come and understands them when all have come. Knows nothing about models.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

_SOME_TEXT = re.compile(rb'"text": ?"[^"]')
_EVENT = re.compile(rb"^data: (\{.*\})\r?$", re.MULTILINE)
_END = b"data: [DONE]"
_TIMEOUT_S = 300.0

Body = Mapping[str, Any]


class LoadFailed(RuntimeError):
    """A server has not answered as it should."""


@dataclass(frozen=True)
class Streamed:
    """One completion."""

    first_s: float  # from sending the request to the first text
    text: str
    prompt_tokens: int
    tokens: int


@dataclass(frozen=True)
class Load:
    """Completions that were asked together."""

    seconds: float  # from the first request to the end of the last answer
    answers: tuple[Streamed, ...]  # in the order in which they ended

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def first_s(self) -> float:
        """Median of the requests."""
        return statistics.median(answer.first_s for answer in self.answers)


def ask(port: int, bodies: Sequence[Body], at_once: int) -> Load:
    """POST these bodies to /v1/completions, `at_once` at any time until none is left. Raises LoadFailed."""
    return asyncio.run(_ask(port, bodies, at_once))


async def _ask(port: int, bodies: Sequence[Body], at_once: int) -> Load:
    requests = iter([_request(body) for body in bodies])
    answers: list[Streamed] = []
    began = time.perf_counter()
    try:
        clients = asyncio.gather(*(_client(port, requests, answers) for _ in range(at_once)))
        await asyncio.wait_for(clients, _TIMEOUT_S)
    except (OSError, TimeoutError) as error:
        raise LoadFailed(f"a completion failed: {error!r}") from None
    return Load(time.perf_counter() - began, tuple(answers))


async def _client(port: int, requests: Iterator[bytes], answers: list[Streamed]) -> None:
    """Asks for one after the other."""
    loop = asyncio.get_running_loop()
    for request in requests:
        transport, exchange = await loop.create_connection(partial(_Exchange, request), "127.0.0.1", port)
        try:
            await exchange.ended
        finally:
            transport.close()
        answers.append(exchange.answer())


def _request(body: Body) -> bytes:
    content = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class _Exchange(asyncio.Protocol):
    """One request and its answer, on a connection of their own. `ended` is set when the whole answer is there."""

    def __init__(self, request: bytes) -> None:
        self._request, self._received = request, bytearray()
        self._began = self._first_s = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._began = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        known = len(self._received)
        self._received += data
        if not self._first_s and _SOME_TEXT.search(self._received):
            self._first_s = time.perf_counter() - self._began
        if self._received.find(_END, max(0, known - len(_END))) >= 0 and not self.ended.done():
            self.ended.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():  # `answer` says what is wrong with what has come
            self.ended.set_result(None)

    def answer(self) -> Streamed:
        """Raises LoadFailed for anything but a whole stream with text and its usage."""
        received = bytes(self._received)
        events = [json.loads(found) for found in _EVENT.findall(received)]
        usage = next((event["usage"] for event in reversed(events) if event.get("usage")), None)
        if not received.startswith(b"HTTP/1.1 200") or _END not in received or not self._first_s or usage is None:
            raise LoadFailed(received[-500:].decode(errors="replace"))
        text = "".join(choice["text"] for event in events for choice in event.get("choices", ()))
        return Streamed(self._first_s, text, usage["prompt_tokens"], usage["completion_tokens"])
