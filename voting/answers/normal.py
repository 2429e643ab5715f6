"""How an answer is spelled once everything that says nothing is gone: rung 0 of the ladder (voting.md section 17)."""

from __future__ import annotations

import re
import unicodedata

_ENCLOSING = (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", re.ASCII)
# A pair of backslashes is a line break and comes first, so that nothing after it is taken for a command.
_COMMAND = re.compile(r"\\\\|\\(?:left|right)(?![A-Za-z])|\\[,!;]|\\[dt]frac(?![A-Za-z])")
_SAME = str.maketrans({**dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"), "\u2044": "/"})
# NFKC alone makes 102 of 10², and eleven halves of 1½
_COMPATIBLE = {"<super>": "^{%s}", "<sub>": "_{%s}", "<fraction>": " %s"}


def normalise(answer: str) -> str:
    """The spelling that answers are compared by. Linear in the answer's length."""
    text = answer if answer.isascii() else _composed(answer)
    text = _COMMAND.sub(_command, text)
    text = _peeled(" ".join(text.split()))
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


def _composed(text: str) -> str:
    """NFKC, except that raised and lowered characters and fractions keep their meaning; one sign for minus."""
    return unicodedata.normalize("NFKC", "".join(map(_spelled, text))).translate(_SAME)


def _spelled(letter: str) -> str:
    form = _COMPATIBLE.get(unicodedata.decomposition(letter).partition(" ")[0])
    return letter if form is None else form % unicodedata.normalize("NFKC", letter)


def _command(found: re.Match[str]) -> str:
    command = found[0]
    if command.endswith("frac"):
        return r"\frac"
    return command if command == r"\\" else ""


def _peeled(text: str) -> str:
    """Without white space, full stops at the end and mathematics' delimiters around all of it, however nested."""
    start, end = 0, len(text)
    while start < end:
        if text[start].isspace():
            start += 1
        elif text[end - 1].isspace() or text[end - 1] == ".":
            end -= 1
        elif pair := next((pair for pair in _ENCLOSING if _encloses(pair, text, start, end)), None):
            start, end = start + len(pair[0]), end - len(pair[1])
        else:
            break
    return text[start:end]


def _encloses(pair: tuple[str, str], text: str, start: int, end: int) -> bool:
    left, right = pair
    return (
        end - start >= len(left) + len(right) and text.startswith(left, start, end) and text.endswith(right, start, end)
    )
