"""The runner's end of the memory that rows of logits arrive in: who gets which slot."""

from __future__ import annotations

import asyncio
import itertools
import os

from engine.runners.vllm.row_block import LogitRow, Place, RowBlock, block_size


class RowInbox:
    """Lives in the event loop. The memory is anonymous: nothing is left of it, whatever ends how, and what has not been
    written to takes no space."""

    def __init__(self, slots: int, vocab: int) -> None:
        """slots: rows that can be on their way at once."""
        self.slots = slots
        self._file = os.memfd_create("drafthouse-rows")
        os.ftruncate(self._file, block_size(slots, vocab))
        self._block = RowBlock(self._file, slots, vocab)
        self._free: asyncio.LifoQueue[int] = asyncio.LifoQueue()  # the latest first: it is in caches
        for slot in reversed(range(slots)):
            self._free.put_nowait(slot)
        self._tickets = itertools.count(1)

    @property
    def path(self) -> str:
        """Of the memory, for other processes of this machine and user."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return self._free.qsize()

    async def take(self) -> Place:
        """Where the next row can go; waits until there is a slot."""
        return Place(await self._free.get(), next(self._tickets))

    def read(self, place: Place) -> LogitRow | None:
        """As `RowBlock.read`."""
        return self._block.read(place)

    def give_back(self, place: Place) -> None:
        self._free.put_nowait(place.slot)

    def close(self) -> None:
        os.close(self._file)
