"""The file that samples are drawn into: a first line of settings, then a whole problem per line.

Lines are written to the disk one by one, so a process that is killed leaves at most one partial line at the end, which
the next one drops. One writer at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from server.vote_cli.questions import Question
from voting.samples_file import DRAWN_WITH, SamplesFileError, read_lines, read_problem

_BEGINNING = f'{{"{DRAWN_WITH}": '.encode()


class Journal:
    """A context manager; `add` within it."""

    def __init__(self, path: Path, settings: Mapping[str, Any], questions: Sequence[Question]) -> None:
        """Reads what there is. settings: finite JSON. Raises SamplesFileError for a file of something else, of other
        settings or other questions, and OSError."""
        self.path = path
        self._settings = dict(settings)
        self._places = {question.id: place for place, question in enumerate(questions)}
        self.done: list[str] = []  # ids, in the file's order
        if path.exists():
            self._resume({question.id: question for question in questions})

    def __enter__(self) -> Journal:
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        if not self.done:
            self.path.unlink()

    def add(self, question: Question, records: Sequence[Mapping[str, Any]]) -> None:
        """A question with all its samples; they are on the disk when this returns. Raises OSError."""
        gold = {} if question.gold is None else {"gold": question.gold}
        record = {"id": question.id, "prompt": question.prompt, **gold, "samples": list(records)}
        self._write([record] if self.done else [{DRAWN_WITH: self._settings}, record])
        self.done.append(question.id)

    def arrange(self) -> None:
        """Puts problems in the order of the questions: the same samples then make the same file. Raises OSError."""
        places = [self._places[one] for one in self.done]
        if places == sorted(places):
            return
        header, *lines = self.path.read_bytes().splitlines(keepends=True)
        ordered = [line for _, line in sorted(zip(places, lines, strict=True))]
        beside = self.path.with_name(f"{self.path.name}.part")
        with beside.open("wb") as file:
            file.writelines([header, *ordered])
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)

    def _write(self, records: Sequence[Mapping[str, Any]]) -> None:
        lines = memoryview(b"".join(json.dumps(record, allow_nan=False).encode() + b"\n" for record in records))
        while lines:
            lines = lines[os.write(self._file, lines) :]
        os.fsync(self._file)

    def _resume(self, questions: Mapping[str, Question]) -> None:
        whole = self.path.read_bytes() if self.path.is_file() else b"no file"
        if not _BEGINNING.startswith(whole[: len(_BEGINNING)]):
            raise self._foreign()
        lines = whole.split(b"\n")[:-1]
        if len(lines) < 2:  # not one problem
            os.truncate(self.path, 0)
            return
        self._check_settings(lines[0])
        os.truncate(self.path, whole.rfind(b"\n") + 1)
        for problem in read_lines(self.path, lambda record, number: read_problem(record, str(number))):
            question = questions.get(problem.id)
            if question is None or (question.prompt, question.gold) != (problem.prompt, problem.gold):
                raise SamplesFileError(f"{self.path} has samples of another problem '{problem.id}'; name another file")
            self.done.append(problem.id)

    def _check_settings(self, header: bytes) -> None:
        try:
            before = dict(json.loads(header)[DRAWN_WITH])
        except (ValueError, RecursionError, KeyError, TypeError):
            raise self._foreign() from None
        now = self._settings
        if before != now:
            changes = "; ".join(
                f"{name} {json.dumps(before.get(name))}, now {json.dumps(now.get(name))}"
                for name in {**before, **now}
                if before.get(name) != now.get(name)
            )
            raise SamplesFileError(
                f"{self.path} was drawn with other settings ({changes}); repeat those, or name another file"
            )

    def _foreign(self) -> SamplesFileError:
        return SamplesFileError(f"{self.path} was not written by `drafthouse vote run`; name another file")
