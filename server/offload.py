"""Keeps the event loop free: work on something large runs in a thread, small work at once, as a hop costs more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
LARGE = 20_000  # characters, bytes, tokens or listed log-probabilities: some milliseconds of work


async def offload(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work`, of which `size` says how much there is. What it raises is raised here."""
    if size < LARGE:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
