"""Work ends when its client leaves, at whatever moment that is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from server.disconnect import ClientGone, EventStream, while_connected


class Client:
    """An ASGI client that leaves when told to."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        await asyncio.sleep(0)


class Work:
    """Yields numbers forever and notes when it was closed."""

    def __init__(self) -> None:
        self.closed = False

    async def numbers(self) -> AsyncGenerator[int]:
        try:
            for number in range(10**9):
                yield number
                await asyncio.sleep(0.001)
        finally:
            self.closed = True


async def as_bytes(work: AsyncGenerator[int]) -> AsyncGenerator[bytes]:
    async for number in work:
        yield b"%d" % number


@pytest.mark.parametrize("delay", [0.0, 0.01])
async def test_stream_closes_its_work(delay: float) -> None:
    client, work = Client(), Work()
    numbers = work.numbers()
    await anext(numbers)  # the first step is taken before the response starts
    if not delay:
        client.left.set()  # gone before the stream was ever read
    else:
        asyncio.get_running_loop().call_later(delay, client.left.set)
    with pytest.raises(ClientGone):
        await EventStream(as_bytes(numbers), numbers)({"type": "http"}, client.receive, client.send)
    assert work.closed


async def test_stream_that_ends_by_itself() -> None:
    async def two() -> AsyncGenerator[int]:
        yield 1
        yield 2

    client, numbers = Client(), two()
    await EventStream(as_bytes(numbers), numbers)({"type": "http"}, client.receive, client.send)
    assert [message.get("body") for message in client.sent[1:]] == [b"1", b"2", b""]


async def test_result_or_cancellation() -> None:
    async def answer() -> int:
        return 3

    async def forever() -> None:
        await asyncio.Event().wait()

    client = Client()
    assert await while_connected(client.receive, answer()) == 3
    asyncio.get_running_loop().call_later(0.01, client.left.set)
    with pytest.raises(ClientGone):
        await while_connected(client.receive, forever())


async def test_errors_pass_through() -> None:
    async def broken() -> None:
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        await while_connected(Client().receive, broken())
