"""What steps have produced for their readers and has not been sent yet.

Owned by the engine thread, which hands everything to the event loops in one call per step. An output that has been
sent belongs to its reader.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from engine.mailbox import Mailbox, Parcel, deliver
from engine.request import Delta, Output
from engine.sequence import ActiveRequest

log = logging.getLogger(__name__)


class Outbox:
    """One open output per request that has something new, and the parcels that are ready to leave."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[ActiveRequest, Output]] = {}  # by request id
        self._parcels: list[Parcel] = []

    def output(self, active: ActiveRequest) -> Output:
        """The request's open output."""
        return self._open.setdefault(active.request.id, (active, Output()))[1]

    def delta(self, active: ActiveRequest, choice: int) -> Delta:
        """The part of the request's open output that belongs to this choice."""
        return self.output(active).delta(choice)

    def end(self, active: ActiveRequest) -> None:
        """The open output is the request's last."""
        output = self.output(active)
        output.prompt_scores = active.prompt_scores
        output.cached_tokens = active.cached_tokens
        del self._open[active.request.id]
        self._parcels.append((active.mailbox, output, True))

    def flush(self) -> None:
        """Send what is due: one hop to each event loop."""
        now = time.monotonic()
        held: dict[str, tuple[ActiveRequest, Output]] = {}
        for active, output in self._open.values():
            if active.delivered_at and now - active.delivered_at < active.request.delivery_interval_s:
                held[active.request.id] = (active, output)
                continue
            active.delivered_at = now
            output.cached_tokens = active.cached_tokens
            if not active.unscored:
                output.prompt_scores = active.prompt_scores
            self._parcels.append((active.mailbox, output, False))
        self._open = held
        parcels, self._parcels = self._parcels, []
        _send(parcels)

    def fail(self, mailboxes: Iterable[Mailbox], error: Exception) -> None:
        """Send this error to everybody named and nothing else."""
        self._open.clear()
        self._parcels.clear()
        _send([(mailbox, None, error) for mailbox in mailboxes])


def _send(parcels: list[Parcel]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[Parcel]] = {}
    for parcel in parcels:
        by_loop.setdefault(parcel[0].loop, []).append(parcel)
    for loop, mine in by_loop.items():
        try:
            loop.call_soon_threadsafe(deliver, mine)
        except RuntimeError:  # the loop is closed: nobody is left to hear it
            log.debug("dropped %d outputs of a closed event loop", len(mine))
