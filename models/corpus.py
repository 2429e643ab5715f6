"""Token streams for training: packed word problems (with loss weights) and Python source.

Knows nothing about models. The source is the standard library of the running interpreter, which everybody
who can run this has; its files are split into training and held-out parts by a hash of their path.
"""

from __future__ import annotations

import re
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from models.problems import Problem, problems

QUESTION_WEIGHT = 0.1  # questions are noise to predict; worked steps are not
RESULT_WEIGHT = 3.0  # the digits after "=" and "####": the number facts themselves
_RESULT = re.compile(r"(?:= |#### )(\d+)")
_SKIPPED = (
    "site-packages",
    "/test/",
    "/tests/",
    "/idlelib/",
    "/encodings/",
    "/pydoc_data/",
    "/lib2to3/",
    "/turtledemo/",
)
_HELD_OUT_SHARE = 20


def source_files(held_out: bool) -> list[Path]:
    """Standard-library files of one side of the split, sorted by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    chosen = []
    for path in sorted(root.rglob("*.py")):
        name = "/" + path.relative_to(root).as_posix()
        if any(part in name for part in _SKIPPED):
            continue
        if (zlib.crc32(name.encode()) % _HELD_OUT_SHARE == 0) == held_out:
            chosen.append(path)
    return chosen


def source_text(held_out: bool) -> Iterator[str]:
    for path in source_files(held_out):
        yield path.read_text(encoding="utf-8", errors="ignore")


def chat(problem: Problem) -> str:
    """The problem as the chat template writes it, without the leading begin token."""
    return f"<|user|>{problem.question}<|end|><|assistant|>{problem.solution}<|end|>"


def source_tokens(tokenizer: Tokenizer, held_out: bool) -> np.ndarray:
    """int32 [N]: every file as `<|begin|>` source `<|end|>`."""
    begin, end = tokenizer.token_to_id("<|begin|>"), tokenizer.token_to_id("<|end|>")
    parts: list[int] = []
    for encoding in tokenizer.encode_batch(list(source_text(held_out))):
        parts += [begin, *encoding.ids, end]
    return np.asarray(parts, dtype=np.int32)


class ProblemStream:
    """Packed problem tokens and the loss weight of each as a *target*."""

    def __init__(self, tokenizer: Tokenizer, seed: int, held_out: bool = False) -> None:
        self._tokenizer = tokenizer
        self._problems = problems(seed, held_out)
        self._begin = tokenizer.token_to_id("<|begin|>")
        self._tokens: list[int] = []
        self._weights: list[float] = []

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32 [count], weights float32 [count])."""
        while len(self._tokens) < count:
            self._append(next(self._problems))
        taken = np.asarray(self._tokens[:count], np.int32), np.asarray(self._weights[:count], np.float32)
        # a row always starts at a problem's beginning: what is left of the last one is dropped
        self._tokens, self._weights = [], []
        return taken

    def _append(self, problem: Problem) -> None:
        text = chat(problem)
        encoding = self._tokenizer.encode(text)
        solution_at = text.index("<|assistant|>") + len("<|assistant|>")
        results = [match.span(1) for match in _RESULT.finditer(text, solution_at)]
        self._tokens.append(self._begin)
        self._weights.append(0.0)
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            self._tokens.append(token)
            if start < solution_at:
                self._weights.append(QUESTION_WEIGHT)
            else:
                in_result = any(a <= start and end <= b for a, b in results)
                self._weights.append(RESULT_WEIGHT if in_result else 1.0)
