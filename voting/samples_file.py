"""Files of samples that have been drawn: the layout of RPC's authors, and ours (voting.md section 19).

Theirs is one JSON object with `predict[n][m]` (answers), `completion[n][m]`, `mean_logprob[n][m]` and `answer[n]`, the
right ones. Ours has a problem per line: {"id", "prompt"?, "gold"?, "samples": [record, ...]}; a line {"drawn_with":
{...}} says with which settings the others were drawn, and is read past.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from samplers.contract import SamplerError
from voting.answers.normal import normalise
from voting.contract import Sample
from voting.records import read_logprob, read_sample

_TABLES = ("predict", "completion", "mean_logprob")
_FIELDS = ("id", "prompt", "gold", "samples")
DRAWN_WITH = "drawn_with"
T = TypeVar("T", bound="Named")


class SamplesFileError(ValueError):
    """The file is not what it should be; says where."""


class Named(Protocol):
    """What a line of a file is about."""

    @property
    def id(self) -> str: ...


@dataclass(frozen=True)
class Problem:
    """One prompt and its samples, in index order."""

    id: str
    samples: tuple[Sample, ...]  # at least one
    gold: str | None = None  # the right answer
    prompt: str = ""


def read_problems(path: Path) -> list[Problem]:
    """At least one. Raises SamplesFileError, naming file, line and field, and OSError."""
    text = _read(path)
    tables = _tables(text)
    if tables is None:
        return _from_lines(text, path, lambda record, number: read_problem(record, str(number)))
    try:
        problems = list(_from_tables(tables))
    except SamplerError as error:
        raise SamplesFileError(f"{path}: {error}") from None
    if not problems:
        raise SamplesFileError(f"{path} holds no problem")
    return problems


def read_lines(path: Path, read: Callable[[Mapping[str, Any], int], T]) -> list[T]:
    """A JSON object per line, each as `read` makes it of the object and its number from 0; at least one, ids differ.
    Raises SamplesFileError, naming file, line and field, and OSError."""
    return _from_lines(_read(path), path, read)


def read_problem(record: Mapping[str, Any], default_id: str) -> Problem:
    """Raises SamplerError."""
    check_fields(record, _FIELDS)
    records = _row(record.get("samples"), "samples")
    samples = [read_sample(one, place, f"samples[{place}]") for place, one in enumerate(records)]
    if len({sample.index for sample in samples}) < len(samples):
        raise SamplerError("two 'samples' have the same index", "samples")
    return Problem(
        spelled(record.get("id", default_id), "id"),
        tuple(sorted(samples, key=lambda sample: sample.index)),
        None if record.get("gold") is None else spelled(record["gold"], "gold"),
        _string(record.get("prompt") or "", "prompt"),
    )


def gold_of(problem: Problem) -> str:
    """Raises SamplerError for a problem of which nobody has said what is right."""
    if problem.gold is None:
        raise SamplerError(f"problem '{problem.id}' has no 'gold'", "gold")
    return problem.gold


@contextmanager
def naming(problem: Problem) -> Iterator[None]:
    """Errors inside say which problem they are about."""
    try:
        yield
    except SamplerError as error:
        raise SamplerError(f"problem '{problem.id}': {error}", error.param) from None


def check_fields(record: Mapping[str, Any], fields: Sequence[str]) -> None:
    """Raises SamplerError for a field of a problem that is not one of these."""
    for name in record:
        if name not in fields:
            raise SamplerError(f"'{name}' is not a field of a problem; known: {', '.join(fields)}", name)


def spelled(value: Any, path: str) -> str:
    """Numbers are read as they are spelled. Raises SamplerError."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise SamplerError(f"'{path}' must be a string or a number", path)
    return str(value)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SamplesFileError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None


def _tables(text: str) -> dict[str, Any] | None:
    """None: it is not theirs."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and not document.keys().isdisjoint(_TABLES) else None


def _from_tables(tables: Mapping[str, Any]) -> Iterator[Problem]:
    for name in (*_TABLES, "answer"):
        if not isinstance(tables.get(name), list):
            raise SamplerError(f"'{name}' must be a list with an entry per problem", name)
    golds = tables["answer"]
    for name in _TABLES:
        if len(tables[name]) != len(golds):
            raise SamplerError(f"'{name}' has {len(tables[name])} problems, 'answer' {len(golds)}", name)
    for n, gold in enumerate(golds):
        columns = [_row(tables[name][n], f"{name}[{n}]") for name in _TABLES]
        for name, column in zip(_TABLES, columns, strict=True):
            if len(column) != len(columns[0]):
                raise SamplerError(
                    f"'{name}[{n}]' has {len(column)} samples, 'predict[{n}]' {len(columns[0])}", f"{name}[{n}]"
                )
        rows = zip(*columns, strict=True)
        samples = tuple(
            Sample(
                m,
                _string(text, f"completion[{n}][{m}]"),
                _answer(_string(answer, f"predict[{n}][{m}]")) if answer is not None else None,
                mean_logprob=read_logprob(logprob, f"mean_logprob[{n}][{m}]"),
            )
            for m, (answer, text, logprob) in enumerate(rows)
        )
        yield Problem(str(n), samples, spelled(gold, f"answer[{n}]"))


def _from_lines(text: str, path: Path, read: Callable[[Mapping[str, Any], int], T]) -> list[T]:
    found: dict[str, T] = {}
    for number, line in enumerate(text.split("\n"), 1):
        try:
            record = _object(line) if line.strip() else None
            if record is None or record.keys() == {DRAWN_WITH}:
                continue
            one = read(record, len(found))
            if one.id in found:
                raise SamplerError(f"two problems have the id '{one.id}'", "id")
        except SamplerError as error:
            raise SamplesFileError(f"{path}, line {number}: {error}") from None
        found[one.id] = one
    if not found:
        raise SamplesFileError(f"{path} holds no problem")
    return list(found.values())


def _object(line: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SamplerError(f"this is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise SamplerError("a line must be a JSON object")
    return record


def _row(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise SamplerError(f"'{path}' must be a list with at least one sample", path)
    return value


def _string(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise SamplerError(f"'{path}' must be a string", path)
    return value


def _answer(text: str) -> str | None:
    """An answer of which nothing is left is none."""
    return text if normalise(text) else None
