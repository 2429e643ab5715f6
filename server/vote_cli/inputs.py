"""From the options of `drafthouse vote` to problems, and to ways of voting over their samples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from samplers.contract import SamplerError
from voting.answers.equivalence import read_equivalence
from voting.answers.extraction import Extraction, read_extraction
from voting.answers.math_pool import MathPool
from voting.contract import VOTING_RULES
from voting.poll import PUBLISHED_RPC, Poll, Reading
from voting.rule import read_values
from voting.samples_file import Problem, read_problems

PATIENCE_S = 1e6  # offline every pair of answers is compared, however long it takes


def read(file: Path, options: Mapping[str, Any]) -> list[Problem]:
    """Raises SamplesFileError, OSError, and SamplerError where answers are missing altogether."""
    problems = read_problems(file)
    answered = any(sample.answer is not None for problem in problems for sample in problem.samples)
    if not answered and not options["re_extract"]:
        raise SamplerError("no sample has an answer; find them with --re-extract", "re-extract")
    return problems


@contextmanager
def reading(equiv: str, published: bool, options: Mapping[str, Any]) -> Iterator[Reading]:
    """How answers are found and compared; math-verify's processes, if it needs them, end with the context. options:
    re_extract, extract, end_of_reasoning, keep_truncated. Raises SamplerError."""
    equivalence = replace(read_equivalence(name_or_json(equiv, "equiv"), "equiv"), budget_s=PATIENCE_S)
    common = {
        "extraction": _extraction(options),
        "end_of_reasoning": options["end_of_reasoning"],
        "keep_truncated": options["keep_truncated"],
        "published": published,
    }
    if not equivalence.math_verify:
        yield Reading(equivalence, **common)
        return
    with MathPool() as pool:
        yield Reading(equivalence, pool.compare, **common)


def _extraction(options: Mapping[str, Any]) -> Extraction | None:
    if options["re_extract"]:
        return read_extraction(name_or_json(options["extract"] or "auto", "extract"), "extract")
    for name in ("extract", "end_of_reasoning"):
        if options[name] is not None:
            raise SamplerError(f"--{name.replace('_', '-')} needs --re-extract", name)
    return None


def polls(methods: Sequence[str], params: str | None, how: Reading, ks: Sequence[int]) -> list[Poll]:
    """Every rule with its parameters, which have been checked for every K."""
    rules = [VOTING_RULES.get(name.strip(), "methods") for name in methods]
    given = _object(params, "params") if params else {}
    for name, fields in given.items():
        if name not in {rule.name for rule in rules} or not isinstance(fields, dict):
            raise SamplerError(
                f"'params.{name}' must be an object of parameters of one of the methods", f"params.{name}"
            )
    found = []
    for rule in dict.fromkeys(rules):
        usual = PUBLISHED_RPC if how.published and rule.name == "rpc" else {}
        values = {**usual, **given.get(rule.name, {})}
        for k in ks:
            read_values(rule, values, k, f"params.{rule.name}")
        found.append(Poll(rule, values, how))
    return found


def fewest(problems: Sequence[Problem]) -> int:
    """Samples that every problem has."""
    return min(len(problem.samples) for problem in problems)


def sizes(text: str | None, most: int) -> list[int]:
    """Samples per vote, ascending, at most `most`: those named, else powers of 2 and all. Raises SamplerError."""
    ks = integers(text, "k") if text else sorted({*(2**i for i in range(2, most.bit_length())), most})
    if ks[-1] > most:
        raise SamplerError(f"'k' must be at most the number of samples, {most}, got {ks[-1]}", "k")
    return ks


def integers(text: str, path: str) -> list[int]:
    """Positive and ascending. Raises SamplerError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() and int(part) > 0 for part in parts):
        raise SamplerError(f"'{path}' must be positive integers with commas between, got '{text}'", path)
    return sorted({int(part) for part in parts})


def name_or_json(text: str, path: str) -> Any:
    """What a request would have in this place. Raises SamplerError."""
    return _json(text, path) if text.lstrip().startswith(("{", "[")) else text


def _object(text: str, path: str) -> dict[str, Any]:
    value = _json(text, path)
    if not isinstance(value, dict):
        raise SamplerError(f"'{path}' must be a JSON object", path)
    return value


def _json(text: str, path: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SamplerError(f"'{path}' is no JSON: {error}", path) from None
