"""Who is let into an engine, whatever runs it. Lives in the event loop."""

from __future__ import annotations

from dataclasses import dataclass

from engine.request import DecodeRequest
from engine.runners.base import Overloaded


@dataclass(frozen=True)
class QueueLimits:
    """Checked in the event loop before a request reaches the engine."""

    requests: int  # beyond those the slots can hold
    tokens: int  # of prompts that nothing has been answered to; one prompt alone always passes


class Admission:
    """The live requests, and the prompt tokens of those that nothing has been answered to."""

    def __init__(self, limits: QueueLimits, slots: int) -> None:
        """slots: sequences that run at once."""
        self._limits, self._slots = limits, slots
        self._live: set[str] = set()  # ids
        self._unanswered: dict[str, int] = {}  # id -> prompt tokens

    def enter(self, request: DecodeRequest) -> None:
        """Raises Overloaded when there is no room, ValueError for an id that is taken."""
        if request.id in self._live:
            raise ValueError(f"request id {request.id} is already running")
        if len(self._live) >= self._limits.requests + self._slots:
            raise Overloaded(f"{len(self._live)} requests are running or waiting")
        queued = sum(self._unanswered.values())
        if queued and queued + len(request.prompt_ids) > self._limits.tokens:
            raise Overloaded(f"{queued} prompt tokens are waiting")
        self._live.add(request.id)
        self._unanswered[request.id] = len(request.prompt_ids)

    def answered(self, request_id: str) -> None:
        """It has had its first output."""
        self._unanswered.pop(request_id, None)

    def leave(self, request_id: str) -> None:
        self._live.discard(request_id)
        self._unanswered.pop(request_id, None)

    @property
    def live(self) -> int:
        """Requests that have not left."""
        return len(self._live)

    @property
    def queued_tokens(self) -> int:
        """Of prompts that nothing has been answered to."""
        return sum(self._unanswered.values())
