"""Where a request's outputs wait for their consumer: at most one, into which later ones are merged.

Lives in the consumer's event loop; the engine thread only ever schedules `deliver` there. A slow consumer costs
no queue: memory is bounded by the text itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from engine.request import Output


class Mailbox:
    """One pending output, or the error that ended the request."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._pending: Output | None = None
        self._error: Exception | None = None
        self._closed = False
        self._arrived = asyncio.Event()

    def put(self, output: Output) -> None:
        if self._pending is None:
            self._pending = output
        else:
            self._pending.absorb(output)
        self._arrived.set()

    def fail(self, error: Exception) -> None:
        """End the request with an error; what was put before is still read first."""
        self._error = error
        self.close()

    def close(self) -> None:
        """No output follows."""
        self._closed = True
        self._arrived.set()

    async def get(self) -> Output | None:
        """Everything since the last call, or None at the end. Raises the error given to `fail`."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            output, self._pending = self._pending, None
            if self._closed:
                self._arrived.set()
            if output is not None:
                return output
            if self._error is not None:
                raise self._error
            if self._closed:
                return None


Parcel = tuple[Mailbox, Output | None, bool | Exception]  # (to, output, True: last one / error that ended it)


def deliver(parcels: Iterable[Parcel]) -> None:
    """Hand a step's outputs over; runs in the event loop."""
    for mailbox, output, end in parcels:
        if output is not None:
            mailbox.put(output)
        if isinstance(end, Exception):
            mailbox.fail(end)
        elif end:
            mailbox.close()
