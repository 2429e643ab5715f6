"""Files of samples that have been drawn: the layout of RPC's authors, and ours (voting.md section 19).

Theirs is one JSON object with `predict[n][m]` (answers), `completion[n][m]`, `mean_logprob[n][m]` and `answer[n]`, the
right ones. Ours has a problem per line: {"id", "prompt"?, "gold"?, "samples": [record, ...]}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samplers.contract import SamplerError
from voting.answers.normal import normalise
from voting.contract import Sample
from voting.records import read_logprob, read_sample

_TABLES = ("predict", "completion", "mean_logprob")
_FIELDS = ("id", "prompt", "gold", "samples")


class SamplesFileError(ValueError):
    """The file is not what it should be; says where."""


@dataclass(frozen=True)
class Problem:
    """One prompt and its samples, in index order."""

    id: str
    samples: tuple[Sample, ...]  # at least one
    gold: str | None = None  # the right answer
    prompt: str = ""


def read_problems(path: Path) -> list[Problem]:
    """At least one. Raises SamplesFileError, naming file, line and field, and OSError."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SamplesFileError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    tables = _tables(text)
    where = str(path)
    try:
        if tables is not None:
            problems = list(_from_tables(tables))
        else:
            problems = []
            for number, line in enumerate(text.split("\n"), 1):
                where = f"{path}, line {number}"
                if line.strip():
                    problems.append(_from_line(line, len(problems)))
            where = str(path)
            _check_ids(problems)
    except SamplerError as error:
        raise SamplesFileError(f"{where}: {error}") from None
    if not problems:
        raise SamplesFileError(f"{path} holds no problem")
    return problems


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
        yield Problem(str(n), samples, _gold(gold, f"answer[{n}]"))


def _from_line(line: str, number: int) -> Problem:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SamplerError(f"this is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise SamplerError("a line must be a JSON object")
    for name in record:
        if name not in _FIELDS:
            raise SamplerError(f"'{name}' is not a field of a problem; known: {', '.join(_FIELDS)}", name)
    records = _row(record.get("samples"), "samples")
    samples = [read_sample(one, place, f"samples[{place}]") for place, one in enumerate(records)]
    if len({sample.index for sample in samples}) < len(samples):
        raise SamplerError("two 'samples' have the same index", "samples")
    return Problem(
        _gold(record.get("id", number), "id"),
        tuple(sorted(samples, key=lambda sample: sample.index)),
        None if record.get("gold") is None else _gold(record["gold"], "gold"),
        _string(record.get("prompt") or "", "prompt"),
    )


def _check_ids(problems: list[Problem]) -> None:
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise SamplerError(f"two problems have the id '{problem.id}'", "id")
        seen.add(problem.id)


def _row(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise SamplerError(f"'{path}' must be a list with at least one sample", path)
    return value


def _string(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise SamplerError(f"'{path}' must be a string", path)
    return value


def _gold(value: Any, path: str) -> str:
    """Numbers are read as they are spelled."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise SamplerError(f"'{path}' must be a string or a number", path)
    return str(value)


def _answer(text: str) -> str | None:
    """An answer of which nothing is left is none."""
    return text if normalise(text) else None
