"""Server-sent events: the bytes of a generation stream, from the first chunk to `[DONE]`.

Only `data:` lines, one per event, a blank line after each; some clients crash on anything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any, Protocol

from server.answers.fold import Folded
from server.errors import to_api_error
from server.generate import Step
from server.jsontext import dumps, dumps_in_parts
from server.offload import LARGE
from server.plan import Plan

DONE = b"data: [DONE]\n\n"


class StreamedAnswer(Protocol):
    """What an endpoint knows about its chunks."""

    plan: Plan

    def chunks(self, step: Step, folded: Folded, started: set[int]) -> Iterator[dict[str, Any]]: ...

    def closing(self, folded: Folded) -> Iterator[dict[str, Any]]: ...


def encode(chunks: Iterable[dict[str, Any]], dumps: Callable[[Any], bytes] = dumps) -> bytes:
    return b"".join(b"data: " + dumps(chunk) + b"\n\n" for chunk in chunks)


async def _with_votes(chunks: Iterable[dict[str, Any]], size: int) -> bytes:
    """As `encode`; size: of what the chunks may say about votes."""
    return encode(chunks) if size < LARGE else await asyncio.to_thread(encode, chunks, dumps_in_parts)


async def event_bytes(answer: StreamedAnswer, first: Step, rest: AsyncGenerator[Step]) -> AsyncGenerator[bytes]:
    """All events of a stream whose first step is known. A failure becomes the last event before `[DONE]`."""
    folded, started = Folded(answer.plan), set[int]()
    try:
        async with aclosing(rest):
            yield encode(answer.chunks(first, folded, started))
            async for step in rest:
                size = 0 if step.vote is None else step.vote.size + folded.reported
                if events := await _with_votes(answer.chunks(step, folded, started), size):
                    yield events
        if closing := await _with_votes(answer.closing(folded), folded.reported):
            yield closing
    except Exception as error:
        yield encode([to_api_error(error).body()])
    yield DONE
