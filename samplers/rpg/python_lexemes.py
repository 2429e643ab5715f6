"""Cuts Python source, as it grows, into lexemes. Knows nothing about statements.

Works on bytes, so characters may be cut anywhere. A lexeme that further bytes could prolong or change is held back;
text inside of strings and comments is not, and gives no lexemes.
"""

from __future__ import annotations

import re
from typing import NamedTuple

Lexeme = tuple[str, bytes]  # kind, a group of _LEXEME or "bad"; text

_LEXEME = re.compile(
    rb"""
    (?P<space>[ \t\r\f]+)
  | (?P<string>(?:[rR][bBfFtT]?|[bBfFtT][rR]?|[uU])?(?:'''|\"\"\"|'|\"))
  | (?P<word>[A-Za-z_\x80-\xff][0-9A-Za-z_\x80-\xff]*)
  | (?P<number>[0-9][0-9A-Za-z_.]*)
  | (?P<open>[(\[{])
  | (?P<close>[)\]}])
  | (?P<newline>\n)
  | (?P<comment>\#)
  | (?P<join>\\\r*\n)
  | (?P<point>[,;~])
  | (?P<operator>\.\.\.|\*\*=?|//=?|>>=?|<<=?|->|:=|[-+*/%@&|^=<>!]=?|[.:])
  | (?P<bad>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_GROWING = frozenset({"word", "number", "operator"})
_UNFINISHED = re.compile(rb"\.\.|\\\r*")  # what would match as something shorter or as bad
_INSIDE = {quote: re.compile(rb"\\|\n|" + quote) for quote in (b"'", b'"')} | {
    quote: re.compile(rb"\\|" + quote) for quote in (b"'''", b'"""')
}


class LexState(NamedTuple):
    held: bytes = b""  # the end of the text, not yet cut
    quote: bytes = b""  # of the string that is open
    comment: bool = False


class Cut(NamedTuple):
    state: LexState
    lexemes: list[Lexeme]


def cut(state: LexState, text: bytes, final: bool = False) -> Cut:
    """The lexemes that `text` settles; with `final`, as if it ended there."""
    held, quote, comment = state
    data, at = held + text, 0
    found: list[Lexeme] = []
    while at < len(data):
        if comment:
            end = data.find(b"\n", at)
            if end < 0:
                return Cut(LexState(comment=True), found)
            at, comment = end, False
        elif quote:
            at, closed = _string_end(data, at, quote)
            if closed is None:
                return Cut(LexState(data[at:], quote), found)
            if not closed:
                found.append(("bad", b""))
            quote = b""
        else:
            match = _LEXEME.match(data, at)
            assert match is not None and match.lastgroup is not None
            kind, lexeme, end = match.lastgroup, match.group(), match.end()
            if not final and _may_change(kind, lexeme, data, at, end):
                return Cut(LexState(data[at:]), found)
            if kind == "string":
                empty = not lexeme.endswith((b"'''", b'"""')) and data[end : end + 1] == lexeme[-1:]
                quote = b"" if empty else lexeme.lstrip(b"rRbBuUfFtT")
                end += empty
            comment = kind == "comment"
            if not comment:
                found.append((kind, lexeme))
            at = end
    return Cut(LexState(b"", quote, comment), found)


def _may_change(kind: str, lexeme: bytes, data: bytes, at: int, end: int) -> bool:
    """Whether bytes behind `data` could make this lexeme another one."""
    if end == len(data) and kind in _GROWING:
        return True
    if kind == "string":
        rest = data[end:]
        return len(rest) < 2 and rest in (b"", lexeme[-1:]) and not lexeme.endswith((b"'''", b'"""'))
    return kind in ("operator", "bad") and _UNFINISHED.fullmatch(data, at) is not None


def _string_end(data: bytes, at: int, quote: bytes) -> tuple[int, bool | None]:
    """Where the open string ends and whether properly; None: it goes on, and the bytes from there are held back."""
    while match := _INSIDE[quote].search(data, at):
        at = match.end()
        if match.group() == quote:
            return at, True
        if match.group() == b"\n":
            return at - 1, False
        if data[at:] in (b"", b"\r"):
            return at - 1, None  # whatever is escaped is not complete
        at += 2 if data[at : at + 2] == b"\r\n" else 1
    if len(quote) == 1:
        return len(data), None
    tail = len(data[at:]) - len(data[at:].rstrip(quote[:1]))  # less than three of them, or they would have matched
    return len(data) - tail, None
