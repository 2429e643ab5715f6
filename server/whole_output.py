"""One request to a runner, waited for: questions that the server itself asks, of which nobody sees the parts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from engine.request import DecodeRequest, FinishReason, Output
from engine.runners.base import Runner
from server.errors import internal, overloaded


async def whole_output(runner: Runner, request: DecodeRequest) -> Output:
    """Everything about a request without a program, when it has ended.

    Raises ApiError, or what the runner does: Overloaded, EngineFailed, TooLarge.
    """
    whole = Output()
    async with aclosing(cast(AsyncGenerator[Output], runner.submit(request))) as outputs:
        async for output in outputs:
            whole.absorb(output)
            ends = [delta.finish.reason for delta in whole.deltas.values() if delta.finish is not None]
            if FinishReason.ERROR in ends:
                raise internal()
            if FinishReason.ABORT in ends:
                break
            if whole.scored or len(ends) == request.n:
                return whole
    raise overloaded("the request was ended by the server")
