"""A program and everything it starts, in a process group of their own: they stand still, go on and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_TICKS = os.sysconf("SC_CLK_TCK")  # of the kernel's clock, per second
_POLL_S = 0.05


class ProcessGroup:
    """Starts at once. Whoever owns it has to call `end`: signals to this process do not reach the group."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, output: IO[bytes] | None = None
    ) -> None:
        """environment: beside this process's own; output: where what they print goes, instead of to the terminal."""
        whole = {**os.environ, **(environment or {})}
        self.root = subprocess.Popen(command, env=whole, stdout=output, stderr=output, start_new_session=True)

    def pause(self) -> None:
        """Every process stops where it is, and takes no time of any core."""
        os.killpg(self.root.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.root.pid, signal.SIGCONT)

    def end(self, grace_s: float = 60.0) -> None:
        """SIGTERM to the program, then SIGKILL to what is left of the group when it has ended or the grace is over."""
        try:
            self._signal(signal.SIGCONT)
            self.root.terminate()
            self.root.wait(grace_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            while self._signal(signal.SIGKILL):
                self.root.poll()
                time.sleep(_POLL_S)

    def processor_seconds(self) -> dict[str, float]:
        """CPU time of the living processes so far, by name; the program itself is named ''. Linux only."""
        seconds: dict[str, float] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()  # state, parent, group, ...
                named = (folder / "cmdline").read_text().partition("\0")[0]
            except (FileNotFoundError, ProcessLookupError):  # it has ended
                continue
            if int(fields[2]) == self.root.pid:
                name = "" if int(folder.name) == self.root.pid else Path(named).name
                seconds[name] = seconds.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / _TICKS
        return seconds

    def _signal(self, number: signal.Signals) -> bool:
        """Whether there was somebody to get it."""
        try:
            os.killpg(self.root.pid, number)
        except ProcessLookupError:
            return False
        return True
