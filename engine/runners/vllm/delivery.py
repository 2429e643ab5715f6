"""Outputs of one request on their way to its mailbox: at once, or merged with later ones for a while."""

from __future__ import annotations

import time

from engine.mailbox import Mailbox
from engine.request import Output


class Delivery:
    """Lives in the event loop."""

    def __init__(self, mailbox: Mailbox, interval_s: float) -> None:
        """interval_s: how long outputs after the first may be held back."""
        self._mailbox, self._interval_s = mailbox, interval_s
        self._held = Output()
        self._delivered_at = 0.0  # time.monotonic of the last delivery; 0: nothing has been delivered

    def hold(self, output: Output) -> None:
        """It comes with the next one."""
        self._held.absorb(output)

    def put(self, output: Output, now: bool = False) -> None:
        """Deliver an output with all that is held, or hold it too. now: there is no later one to wait for."""
        self.hold(output)
        at = time.monotonic()
        if now or not self._delivered_at or at - self._delivered_at >= self._interval_s:
            self._delivered_at = at
            held, self._held = self._held, Output()
            self._mailbox.put(held)
