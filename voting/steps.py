"""Where the steps of a chain of reasoning end: `segment` of an analysis (voting.md section 16).

Steps follow one another and leave nothing out. Line breaks belong to the step that they end, spaces to the step that
they begin, as tokenizers have it; a chain of white space alone is one step.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from types import MappingProxyType

from samplers.contract import SamplerError
from voting.answers.patterns import compiled

MOST_STEPS = 256
LONGEST_SEARCH_S = 1.0  # for all matches of a request's regex, each of which may read to the end of the text

Ends = Callable[[str], Iterator[int]]  # of a text: where a step ends, in characters, ascending

_BLANK_LINES = r"\n(?:[^\S\n]*\n)+"
_CLOSING = r"[\"'”’»)\]}]*"
_BLANK_LINE = re.compile(_BLANK_LINES)
_LINE = re.compile(r"\n(?:[^\S\n]*\n)*")
_SENTENCE = re.compile(rf"[.!?…]{_CLOSING}(?:\s*\n|(?=\s))|[。！？][」』”’）]*(?:\s*\n)?|{_BLANK_LINES}")
_LABEL = re.compile(r"\s*\(?(?:\d{1,3}|[A-Za-z])[.)]\s*")  # of an item in a list
_NEXT = re.compile(r"\s*(\S?)")


def segmented(text: str, segment: str | Mapping[str, str] = "blank_line", path: str = "segment") -> list[str]:
    """The steps of a text, none of them empty, which together are the text.

    segment: `blank_line`, `line`, `sentence`, or {"regex": r}: a step ends where a match of r ends. Raises SamplerError
    for what is no regex of RE2, for one that takes too long here, and for more than MOST_STEPS steps. A regex may keep
    its thread busy for that long.
    """
    if isinstance(segment, str):
        ends = _within(text, _ENDS[segment](text))
    else:
        ends = _matches(segment["regex"], text, f"{path}.regex")
    steps = list(islice(_cut(text, ends), MOST_STEPS + 1))
    if len(steps) > MOST_STEPS:
        raise SamplerError(f"'{path}' finds more than {MOST_STEPS} steps", path)
    return steps


def _cut(text: str, ends: Iterable[int]) -> Iterator[str]:
    start = 0
    for end in chain((min(end, len(text)) for end in ends), (len(text),)):  # \C of RE2 counts bytes
        if end > start:
            yield text[start:end]
            start = end


def _within(text: str, ends: Iterable[int]) -> Iterator[int]:
    """Without those that would leave white space alone at the beginning or at the end."""
    first, last = len(text) - len(text.lstrip()), len(text.rstrip())
    return (end for end in ends if first < end < last)


def _behind(pattern: re.Pattern[str]) -> Ends:
    return lambda text: (match.end() for match in pattern.finditer(text))


def _sentences(text: str) -> Iterator[int]:
    """By punctuation alone: where the line goes on in lower case, and behind the number of an item, none has ended."""
    start = 0
    for match in _SENTENCE.finditer(text):
        end = match.end()
        if match[0][-1] != "\n":
            following = _NEXT.match(text, end)
            if (following and following[1].islower()) or _LABEL.fullmatch(text, start, end):
                continue
        yield end
        start = end


_ENDS: Mapping[str, Ends] = MappingProxyType(
    {"blank_line": _behind(_BLANK_LINE), "line": _behind(_LINE), "sentence": _sentences}
)
SEGMENTATIONS = tuple(_ENDS)


def _matches(regex: str, text: str, where: str) -> Iterator[int]:
    """Where matches end, those of nothing included."""
    deadline = time.monotonic() + LONGEST_SEARCH_S
    for match in compiled(regex, where).finditer(text):
        if time.monotonic() > deadline:
            raise SamplerError(f"'{where}' takes more than {LONGEST_SEARCH_S:g} s to find its matches", where)
        yield match.end()
