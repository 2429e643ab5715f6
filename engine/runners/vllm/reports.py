"""What the logits processor has to say beside the token: that a choice has none, or what was asked about it.

A report has been taken when `send` returns, hence before vLLM's output of the same step, which is sent later. The
processor may be on another machine; like vLLM's own ports, this one believes whoever reaches it.
"""

from __future__ import annotations

import logging
import socket
import socketserver
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Thread

from pydantic import ConfigDict, TypeAdapter

from engine.request import TokenScore
from samplers.failures import CONSTRAINT_UNSATISFIABLE
from samplers.trace import TokenTrace

log = logging.getLogger(__name__)
Address = str | tuple[str, int]  # path of a socket on this machine, or host and port
_PATIENCE_S = 30.0  # for an inbox that does not answer
_POLL_S = 0.05  # between looks at whether the inbox is closed
_TAKEN = b"\n"


@dataclass(frozen=True)
class Report:
    """A choice has no token at a position."""

    key: str
    position: int  # output tokens before it, those the choice had begun with included
    code: str  # as `Finish.error_code`
    message: str
    after: tuple[int, ...] = ()  # drafts right before the position: if other tokens came instead, it means nothing


@dataclass(frozen=True)
class Account:
    """What was asked about the token of a choice at a position."""

    key: str
    position: int
    score: TokenScore | None = None
    trace: TokenTrace | None = None


_MESSAGE: TypeAdapter[list[Report | Account]] = TypeAdapter(
    list[Report | Account], config=ConfigDict(ser_json_inf_nan="constants")
)


class ReportSender:
    """The processor's end. Connects when there is something to say."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._socket: socket.socket | None = None

    def send(self, said: Sequence[Report | Account]) -> None:
        """Raises OSError when nobody listens, which ends the engine: a choice would go on with tokens nobody drew."""
        message = _MESSAGE.dump_json(list(said)) + b"\n"
        if self._socket is not None:
            try:
                self._exchange(self._socket, message)
                return
            except OSError:  # whatever lies between has forgotten the connection; to be told twice does no harm
                self._socket.close()
        self._socket = self._connected()
        self._exchange(self._socket, message)

    @staticmethod
    def _exchange(connection: socket.socket, message: bytes) -> None:
        connection.sendall(message)
        if connection.recv(1) != _TAKEN:
            raise ConnectionError("the server does not take reports any more")

    def _connected(self) -> socket.socket:
        if not isinstance(self._address, str):
            return socket.create_connection(self._address, _PATIENCE_S)
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        found.settimeout(_PATIENCE_S)
        found.connect(self._address)
        return found


@dataclass
class _Heard:
    """Of one choice."""

    reports: list[Report] = field(default_factory=list)  # in the order of their positions
    accounts: dict[int, Account] = field(default_factory=dict)  # by position


class ReportInbox:
    """The runner's end. Read in the event loop, filled by threads of its own."""

    def __init__(self, address: Address) -> None:
        """address: with port 0 any free one, on all addresses of the machine. Raises OSError for one that is taken."""
        self._heard: dict[str, _Heard] = {}  # by choice, of those that run: others may still be spoken of
        self.masked_rows = 0  # that have ended choices: masks had left them no token
        taker, self.address = _taker(self._heard), address  # where senders reach it
        self._server: socketserver.BaseServer
        if isinstance(address, str):
            self._server = _LocalServer(address, taker)
        else:
            try:
                self._server = _NetworkServer(("", address[1]), taker)
            except OSError as error:
                message = f"port {address[1]}, for reports from other machines: {error.strerror}"
                raise OSError(error.errno, message) from None
            self.address = (address[0], self._server.server_address[1])
        Thread(target=self._server.serve_forever, args=(_POLL_S,), name="reports", daemon=True).start()

    def expect(self, key: str) -> None:
        """The choice begins."""
        self._heard[key] = _Heard()

    def of(self, key: str, token_ids: Sequence[int], position: int) -> Report | None:
        """What ends a choice among its latest tokens. position: of the first of them."""
        for report in self._heard[key].reports:
            at = report.position - position
            if at < len(token_ids) and tuple(token_ids[max(0, at - len(report.after)) : max(0, at)]) == report.after:
                return report
        return None

    def account(self, key: str, position: int) -> Account | None:
        """What was said about the token at a position; it is said once."""
        return self._heard[key].accounts.pop(position, None)

    def count(self, report: Report) -> None:
        """A choice has ended with it."""
        self.masked_rows += report.code == CONSTRAINT_UNSATISFIABLE

    def forget(self, key: str) -> None:
        """The choice has ended."""
        self._heard.pop(key, None)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _LocalServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class _NetworkServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


def _taker(heard: dict[str, _Heard]) -> type[socketserver.StreamRequestHandler]:
    """What reads a connection, one message a line."""

    class Taker(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            try:
                while line := self.rfile.readline():
                    for said in _MESSAGE.validate_json(line):
                        about = heard.get(said.key)
                        if about is None:
                            continue
                        if isinstance(said, Report):
                            about.reports.append(said)
                        else:
                            about.accounts[said.position] = said
                    self.wfile.write(_TAKEN)
            except (OSError, ValueError) as error:
                log.warning("a connection that reports came from has ended: %s", error)

    return Taker
