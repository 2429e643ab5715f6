"""What the logits processor has to say beside the token: that a choice has none.

A datagram lies in the inbox when `send` returns, hence before vLLM's output of the same step, which is sent later.
Both ends are on one machine.
"""

from __future__ import annotations

import json
import socket
from dataclasses import astuple, dataclass

_LONGEST = 2**16  # bytes
_PATIENCE_S = 5.0  # for an inbox that is full


@dataclass(frozen=True)
class Report:
    """A choice has no token at a position."""

    key: str
    position: int  # output tokens before it, those the choice had begun with included
    code: str  # as `Finish.error_code`
    message: str


class ReportSender:
    """The processor's end. Connects when there is something to say."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(_PATIENCE_S)

    def send(self, report: Report) -> None:
        """Raises OSError when nobody listens, which ends the engine: a choice would go on with tokens nobody drew."""
        self._socket.sendto(json.dumps(astuple(report)).encode(), self._path)


class ReportInbox:
    """The runner's end, in the event loop."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(path)
        self._found: dict[str, Report] = {}  # the first one of each choice

    def collect(self) -> None:
        """Read everything that has arrived."""
        while True:
            try:
                data = self._socket.recv(_LONGEST)
            except BlockingIOError:
                return
            report = Report(*json.loads(data))
            self._found.setdefault(report.key, report)

    def of(self, key: str) -> Report | None:
        """What was said about a choice up to its latest output."""
        self.collect()
        return self._found.get(key)

    def forget(self, key: str) -> None:
        """The choice has ended."""
        self._found.pop(key, None)

    def close(self) -> None:
        self._socket.close()
