"""Where answers stand in a text, by habit of language models. All are linear in the text and give None for nothing."""

from __future__ import annotations

import re
from collections import deque

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})(.*)$")
_BOXED = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]}])[+\-\u2212])?"
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:[eE][+-]?\d+(?!\w)|\s?/\s?\d+(?:\.\d+)?)?(?:\s?\\?%)?",
    re.ASCII,
)
_PHRASE = re.compile(r"\banswer\b[\s*_]*(?:is\b|=|:)[\s:*_]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_KIND = re.compile(r"(?:option|choice)\s+", re.IGNORECASE)
# A letter that is all there is but for marks, or that marks what follows: `**(B)**`, `$\text{B}$`, `B. 42`.
_OPTION = re.compile(r"[\s$*_`(\[{]*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*\(?)?([A-Ja-j])(?:[)\].:]|[\s$*_`}]*$)")
_BEFORE_WORDS = re.compile(r"([B-HJ])\s")  # A and I are words themselves
_MARKED = re.compile(r"\(([A-Ja-j])\)|\[([A-J])\]|\*\*([A-J])\*\*")
_LISTED = re.compile(r"(?:^|[\s(\[])([A-J])[).\]:]", re.MULTILINE)


def after_hash(text: str) -> str | None:
    """What follows the last `####` on its line."""
    _, mark, rest = text.rpartition("####")
    return (rest.partition("\n")[0].strip() or None) if mark else None


def last_code(text: str) -> str | None:
    """The inside of the last fenced code block (CommonMark 4.5). None if that is not closed."""
    last: list[str] | None = None
    fence = ""
    for line in text.split("\n"):
        found = _FENCE.match(line.rstrip("\r"))
        if found and not fence and not (found[1][0] == "`" and "`" in found[2]):
            fence, last = found[1], []
        elif found and fence and found[1].startswith(fence) and not found[2].strip():
            fence = ""
        elif fence and last is not None:
            last.append(line)
    return None if fence or last is None else "\n".join(last).strip("\r\n") or None


def last_boxed(text: str) -> str | None:
    r"""The inside of the last `\boxed{}`. None if its braces are not balanced; `\{` and `\}` are no braces."""
    box = _last(_BOXED, text)
    if box is None:
        return None
    depth = 1
    for brace in _BRACE.finditer(text, box.end()):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[box.end() : brace.start()].strip() or None
    return None


def last_number(text: str) -> str | None:
    """With its sign, thousands separators, exponent, denominator and percent sign."""
    found = _last(_NUMBER, text)
    return found and found[0]


def after_phrase(text: str) -> str | None:
    """What follows the last 'answer is' or 'answer:', up to the end of the sentence or line."""
    rest = _after_phrase(text)
    return None if rest is None else _SENTENCE_END.split(rest, maxsplit=1)[0].strip(" \t\r*_`") or None


def last_option(text: str) -> str | None:
    """The letter A to J that a text chooses: after 'answer is', in a box, alone on the last line, or marked last."""
    rest = _after_phrase(text)
    if rest is not None:
        rest = rest.partition("\n")[0]
        kind = _KIND.match(rest)
        rest = rest[kind.end() :] if kind else rest
        bare = _BEFORE_WORDS.match(rest)
        letter = bare[1] if bare else as_option(_SENTENCE_END.split(rest, maxsplit=1)[0])
        if letter:
            return letter
    letter = as_option(last_boxed(text) or "") or as_option(text.rstrip().rpartition("\n")[2])
    marked = None if letter else _last(_MARKED, text)
    return marked[marked.lastindex or 0].upper() if marked else letter


def as_option(answer: str) -> str | None:
    """The letter, in upper case, if this is an option's."""
    found = _OPTION.match(answer)
    return found and found[1].upper()


def lists_options(prompt: str) -> bool:
    """Whether a prompt offers at least the options A and B, as `A)`, `(A)`, `A.` or `A:`."""
    return {"A", "B"} <= set(_LISTED.findall(prompt))


def _after_phrase(text: str) -> str | None:
    found = _last(_PHRASE, text)
    return None if found is None else text[found.end() :]


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0] if found else None
