"""Where the time of a server's processes goes: py-spy samples their stacks while a load runs.

py-spy is a program of its own (an extra, `drafthouse[bench]`); nothing of it is imported.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_RATE = 100  # samples per second
_PATIENCE_S = 60.0
_PROCESS = re.compile(r'process (\d+):"([^" ]*)')
# py-spy takes some threads for busy that wait, for another thread, a lock, or bytes from another process
_WAITING = re.compile(r"Condition\.wait |_worker |\w*Selector\.select |Connection\._recv |Poller\.poll |main .*tracker")
_SHOWN = 6  # functions of a process
_LEAST = 0.01  # share that is worth showing


class NoProfiler(RuntimeError):
    """py-spy is not installed."""


@dataclass(frozen=True)
class Hot:
    """A function that was at work."""

    process: str  # its program's name; '': the server itself
    function: str  # and its file
    own: float  # share of the samples of all processes in which it was innermost
    below: float  # share in which it was on the stack


def require() -> str:
    """Path of py-spy, of this environment or of the shell's. Raises NoProfiler."""
    own = str(Path(sys.executable).parent)
    found = shutil.which("py-spy", path=os.pathsep.join([own, os.environ.get("PATH", "")]))
    if found is None:
        raise NoProfiler("the profile needs py-spy: pip install 'drafthouse[bench]'")
    return found


@contextmanager
def sampled(pid: int, path: Path) -> Iterator[None]:
    """Samples a process and all below it, and writes a line 'outermost;...;innermost count' for every stack.

    Raises RuntimeError where py-spy cannot read them, which may need permission.
    """
    options = ("--subprocesses", "--function", "--format", "raw", "--rate", str(_RATE))
    command = [require(), "record", "--pid", str(pid), *options, "--output", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as profiler:
        assert profiler.stdout is not None
        said: list[str] = []
        while not said or (said[-1] and "Sampling process" not in said[-1]):
            said.append(profiler.stdout.readline())
        try:
            yield
        finally:
            profiler.send_signal(signal.SIGINT)
            said.append(profiler.communicate(timeout=_PATIENCE_S)[0])
    if profiler.returncode:
        raise RuntimeError("py-spy failed: " + "".join(said).strip())


def hottest(stacks: str, root: int) -> list[Hot]:
    """The functions in which most of the working time of each process is spent. root: id of the server's process."""
    own: Counter[tuple[str, str]] = Counter()
    below: Counter[tuple[str, str]] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        *frames, innermost = stack.split(";")
        if _WAITING.match(innermost):
            continue
        pid, program = _PROCESS.findall(stack)[-1]
        process = "" if int(pid) == root else Path(program).name
        functions = {frame for frame in (*frames, innermost) if not _PROCESS.match(frame)}
        own[process, innermost] += int(count)
        below.update(dict.fromkeys(((process, function) for function in functions), int(count)))
    whole = max(1, own.total())
    processes = dict.fromkeys(process for (process, _), _ in own.most_common())
    return [
        Hot(process, function, count / whole, below[process, function] / whole)
        for process in processes
        for (_, function), count in Counter({key: n for key, n in own.items() if key[0] == process}).most_common(_SHOWN)
        if count >= _LEAST * whole
    ]
