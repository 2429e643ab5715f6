"""Worker processes that compare answers with math-verify (rung 3; voting.md section 17).

Nothing a model writes can hurt whoever asks: a pair costs at most its time-out, a process that hangs, crashes or grows
is replaced, and its pair counts as different. Synchronous; may be used from any number of threads, but not from the
event loop. POSIX only.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

READY, EQUAL = b"r", b"1"  # what a process writes

log = logging.getLogger(__name__)

PAIR_S = 2.0  # after which the process that compares a pair is killed
LONGEST = 512  # characters; longer answers equal no other
TASKS = 1000  # after which a process is replaced, for what libraries keep
_START_S = 30.0
_CACHED = 16_384  # pairs
_PROGRAM = Path(__file__).with_name("math_worker.py")
_DELIMITER = re.compile(r"(?<!\\)\$")
_INTEGER = re.compile(r"-?\d+", re.ASCII)

Question = tuple[str, str, str]  # two answers and `symmetric`


@dataclass(frozen=True)
class Comparison:
    """Which of some keys are equal."""

    equal: frozenset[tuple[int, int]]  # positions i < j
    complete: bool = True  # every pair was compared; those that were not count as different


class MathPool:
    """Processes that start when they are first needed."""

    def __init__(self, workers: int | None = None, pair_s: float = PAIR_S, tasks: int = TASKS) -> None:
        """workers: None is half of the cores, 4 at most."""
        self.size = workers or max(1, min(4, (os.cpu_count() or 1) // 2))
        self._workers = [_Worker(pair_s, tasks) for _ in range(self.size)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(self.size, thread_name_prefix="math-verify")
        self._known: dict[Question, bool] = {}  # the oldest first
        self._lock = threading.Lock()  # of `_known`

    def __enter__(self) -> MathPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Wait until a process is ready, or cannot be started."""
        self._threads.submit(self._warm).result()

    def compare(self, keys: Sequence[str], symmetric: str = "and", budget_s: float = 5.0) -> Comparison:
        """Which of these distinct canonical keys are equal formulas.

        symmetric: 'and' where math-verify, which is asymmetric, has to agree in both orders of a pair, 'or' in one.
        budget_s: for all pairs together, the start of the first process not counted.

        Keys come one after the other, each alone (`math_worker.py`) and then with those before it. One that
        math-verify cannot read or not finish alone equals no other, so that a hostile answer costs one time-out and
        not one per pair. Different integers are different.
        """
        self.start()
        deadline = time.monotonic() + budget_s
        equal: set[tuple[int, int]] = set()
        complete = True
        sound: list[int] = []
        for place, key in enumerate(keys):
            if not _comparable(key):
                continue
            integer = _is_integer(key)
            others = [other for other in sound if not (integer and _is_integer(keys[other]))]
            (itself,) = [True] if integer else self._ask([_question(key, key, symmetric)], deadline)
            verdicts = self._ask([_question(keys[other], key, symmetric) for other in others if itself], deadline)
            complete = complete and None not in (itself, *verdicts)
            if itself:
                sound.append(place)
                equal.update((other, place) for other, verdict in zip(others, verdicts, strict=True) if verdict)
        return Comparison(frozenset(equal), complete)

    def close(self) -> None:
        """Kill the processes and end the threads. Afterwards, and in a comparison under way, `compare` raises
        RuntimeError."""
        for worker in self._workers:
            worker.close()
        self._threads.shutdown()
        for worker in self._workers:
            worker.stop()

    def _ask(self, questions: Sequence[Question], deadline: float) -> list[bool | None]:
        """The verdicts; None for what could not be asked in time. No more questions wait for a process than there are
        processes, so that votes that compare at the same time take turns."""
        verdicts = [self._known.get(question) for question in questions]
        unknown = iter([place for place, verdict in enumerate(verdicts) if verdict is None])
        asked: dict[Future[bool | None], int] = {}
        while (left := deadline - time.monotonic()) > 0:
            for place in islice(unknown, self.size - len(asked)):
                asked[self._threads.submit(self._verdict, questions[place])] = place
            if not asked:
                break
            for future in wait(asked, left, FIRST_COMPLETED).done:
                verdicts[asked.pop(future)] = future.result()
        for future in asked:
            future.cancel()
        return verdicts

    def _verdict(self, question: Question) -> bool | None:
        with self._worker() as worker:
            verdict = self._known.get(question)  # another vote may have asked meanwhile
            if verdict is None:
                verdict = worker.ask(question)
        if verdict is not None:
            with self._lock:
                self._known[question] = verdict
                if len(self._known) > _CACHED:
                    del self._known[next(iter(self._known))]
        return verdict

    def _warm(self) -> None:
        with self._worker() as worker:
            worker.start()

    @contextmanager
    def _worker(self) -> Iterator[_Worker]:
        worker = self._idle.get()
        try:
            yield worker
        finally:
            self._idle.put(worker)


class SharedBudget:
    """`MathPool.compare` for one vote that is looked at again and again: all looks together have one budget."""

    def __init__(self, pool: MathPool) -> None:
        self._pool = pool
        self._spent_s = 0.0

    def compare(self, keys: Sequence[str], symmetric: str = "and", budget_s: float = 5.0) -> Comparison:
        """What has been compared before costs nothing and is known when nothing is left, too."""
        self._pool.start()
        begun = time.monotonic()
        found = self._pool.compare(keys, symmetric, budget_s - self._spent_s)
        self._spent_s += time.monotonic() - begun
        return found


class _Worker:
    """One process at a time. Used by one thread at a time; `close` may come from any."""

    def __init__(self, pair_s: float, tasks: int) -> None:
        self._pair_s = pair_s
        self._tasks = tasks
        self._left = 0  # pairs that the process may still compare
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._lock = threading.Lock()  # no process starts once `_closed` is set

    def start(self) -> bool:
        """Whether there is a process that can be asked."""
        if self._process is not None and self._left and self._process.poll() is None:
            return True
        self.stop()
        with self._lock:
            if self._closed:
                return False
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # whoever interrupts the server does not mean this one
            )
        self._left = self._tasks
        if self._reply(_START_S) == READY:
            return True
        self.stop()
        if not self._closed:
            log.error("math-verify cannot be started; answers are compared without it")
        return False

    def ask(self, question: Question) -> bool | None:
        """The process's verdict; False if it does not live to give one, None if there is no process."""
        if not self.start():
            return None
        assert self._process is not None and self._process.stdin is not None
        self._left -= 1
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
        reply = self._reply(self._pair_s)
        if not reply:
            self.stop()
        return None if self._closed else reply == EQUAL

    def close(self) -> None:
        """Kill the process; the thread that uses it, if one does, goes on at once and has no other."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()

    def stop(self) -> None:
        """Kill the process and leave nothing of it."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _reply(self, seconds: float) -> bytes:
        """One byte, or none if the process has ended or takes longer."""
        assert self._process is not None and self._process.stdout is not None
        readable = select.poll()
        readable.register(self._process.stdout, select.POLLIN)
        return os.read(self._process.stdout.fileno(), 1) if readable.poll(seconds * 1000) else b""


def _question(one: str, other: str, symmetric: str) -> Question:
    """The same in both orders, for the answer is."""
    return (min(one, other), max(one, other), symmetric)


def _comparable(key: str) -> bool:
    """Short enough, and without delimiters inside, between which math-verify would look for formulas."""
    return len(key) <= LONGEST and not _DELIMITER.search(key)


def _is_integer(key: str) -> bool:
    return _INTEGER.fullmatch(key) is not None
