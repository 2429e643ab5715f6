"""A server in processes of its own, for benchmarks: started with the real command, stopped with SIGTERM."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import httpx

from bench.process_group import ProcessGroup

_ROOT = Path(__file__).parents[1]
_POLL_S = 0.05
_LAST_BYTES = 4000  # shown of what a server has printed


class HttpServer:
    """A program that answers /health with 200 once it is ready, on a free port; use as a context manager."""

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        environment: Mapping[str, str] | None = None,
        patience_s: float = 120.0,
        quiet: bool = False,
    ) -> None:
        """Starts it. command: for a port; environment: beside this process's own; quiet: what it prints is shown only
        if it does not become ready."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.ready_s = 0.0  # from its start to the first 200 of /health; 0: it has not come yet
        self._patience_s, self._began = patience_s, time.monotonic()
        self._output = tempfile.TemporaryFile() if quiet else None  # noqa: SIM115 - closed at the end
        self.group = ProcessGroup(command(self.port), environment, self._output)

    @property
    def age_s(self) -> float:
        """Since its start."""
        return time.monotonic() - self._began

    def __enter__(self) -> HttpServer:
        """Waits until it is ready. Raises RuntimeError where that does not happen."""
        try:
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self.group.end()
        if self._output is not None:
            self._output.close()

    def _wait(self) -> None:
        with httpx.Client() as client:
            while self.age_s < self._patience_s:
                status = self.group.root.poll()
                if status is not None:
                    raise RuntimeError(f"the server ended with status {status}{self._last_words()}")
                try:
                    if client.get(f"{self.url}/health").status_code == 200:
                        self.ready_s = self.age_s
                        return
                except httpx.TransportError:
                    pass
                time.sleep(_POLL_S)
        raise RuntimeError(f"the server was not ready within {self._patience_s:g} s{self._last_words()}")

    def _last_words(self) -> str:
        if self._output is None:
            return ""
        self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - _LAST_BYTES))
        return ":\n" + self._output.read().decode(errors="replace")


class ServerProcess(HttpServer):
    """`drafthouse serve`."""

    def __init__(
        self,
        *arguments: str,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        patience_s: float = 120.0,
        quiet: bool = False,
    ) -> None:
        """python: the interpreter, of an environment that has what the arguments need."""
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        super().__init__(
            lambda port: [python, "-m", "server.cli", "serve", "--port", str(port), *arguments],
            {"PYTHONPATH": path, **(environment or {})},
            patience_s,
            quiet,
        )


def metrics(url: str) -> dict[str, float]:
    """Every sample of /metrics by its full name."""
    samples = {}
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line and not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            samples[name] = float(value)
    return samples
