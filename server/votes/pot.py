"""What the prompts of a request leave over of their samples, shared out once all have drawn theirs.

Lives in the event loop. A prompt that fails ends the others' waiting with its request.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from voting.budget import Reallocation, reallocate


class Share(NamedTuple):
    """A prompt's part of what was left over."""

    granted: int  # further samples it may draw
    saved: int  # by all prompts together
    unspent: int


class Pot:
    """`prompts` prompts with `limit` samples each."""

    def __init__(self, prompts: int, limit: int) -> None:
        self._prompts = prompts
        self._limit = limit
        self._used: dict[int, int] = {}
        self._decided: dict[int, bool] = {}
        self._shared: asyncio.Future[Reallocation] | None = None

    async def settle(self, prompt: int, used: int, decided: bool) -> Share:
        """Waits until every prompt has said what it used. decided: it needs no more samples."""
        if self._shared is None:
            self._shared = asyncio.get_running_loop().create_future()
        self._used[prompt], self._decided[prompt] = used, decided
        if len(self._used) == self._prompts:
            order = sorted(self._used)
            solved = [self._decided[one] for one in order]
            self._shared.set_result(reallocate([self._used[one] for one in order], self._limit, solved))
        shared = await asyncio.shield(self._shared)
        return Share(shared.granted[prompt], shared.saved, shared.unspent)
