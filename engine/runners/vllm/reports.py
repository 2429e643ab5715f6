"""What the logits processor has to say beside the token: that a choice has none.

A datagram lies in the inbox when `send` returns, hence before vLLM's output of the same step, which is sent later.
Both ends are on one machine.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from samplers.failures import CONSTRAINT_UNSATISFIABLE

_LONGEST = 2**16  # bytes
_PATIENCE_S = 5.0  # for an inbox that is full


@dataclass(frozen=True)
class Report:
    """A choice has no token at a position."""

    key: str
    position: int  # output tokens before it, those the choice had begun with included
    code: str  # as `Finish.error_code`
    message: str
    after: tuple[int, ...] = ()  # drafts right before the position: if other tokens came instead, it means nothing


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
        self._found: dict[str, list[Report]] = {}  # by choice, in the order of their positions
        self.masked_rows = 0  # that have ended choices: masks had left them no token

    def collect(self) -> None:
        """Read everything that has arrived."""
        while True:
            try:
                data = self._socket.recv(_LONGEST)
            except BlockingIOError:
                return
            key, position, code, message, after = json.loads(data)
            self._found.setdefault(key, []).append(Report(key, position, code, message, tuple(after)))

    def of(self, key: str, token_ids: Sequence[int], position: int) -> Report | None:
        """What ends a choice among its latest tokens. position: of the first of them."""
        self.collect()
        for report in self._found.get(key, ()):
            at = report.position - position
            if at < len(token_ids) and tuple(token_ids[max(0, at - len(report.after)) : max(0, at)]) == report.after:
                self.masked_rows += report.code == CONSTRAINT_UNSATISFIABLE
                return report
        return None

    def forget(self, key: str) -> None:
        """The choice has ended."""
        self._found.pop(key, None)

    def close(self) -> None:
        self._socket.close()
