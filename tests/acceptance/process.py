"""The `drafthouse` command in a process of its own, on a free port, with its output kept."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

READY_S = 120.0
EXIT_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without settings of somebody else's server, plus `variables`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("DRAFTHOUSE_")}
    return own | variables


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "server.cli", *arguments]


class Server:
    """A running server; `url` answers once `wait_ready` has returned."""

    def __init__(self, log: Path, *arguments: str, **variables: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command("serve", "--port", str(port), *arguments),
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(**variables),
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_ready(self, seconds: float = READY_S) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the server ended: {self.output()}"
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"the server was not ready within {seconds:.0f} s: {self.output()}")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self) -> int:
        """Waits for the end."""
        return self.process.wait(EXIT_S)


@contextmanager
def running(log: Path, *arguments: str, **variables: str) -> Iterator[Server]:
    """A ready server; it must still be there at the end, and leave with status 0 when asked to."""
    server = Server(log, *arguments, **variables)
    try:
        server.wait_ready()
        yield server
        assert server.process.poll() is None, f"the server died: {server.output()}"
        server.terminate()
        assert server.exit_code() == 0, server.output()
        assert "Traceback" not in server.output(), server.output()
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
