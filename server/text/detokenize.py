"""Token ids to text, one token at a time, never splitting a character.

What `feed` and `finish` return concatenates to the text of all tokens decoded at once. One object serves one choice.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
LONGEST_WAIT = 8  # tokens; no character takes more, what still ends in U+FFFD then is invalid


class Detokenizer(Protocol):
    """Incremental decoding of one choice."""

    def feed(self, token: int) -> str:
        """The text that became final with this token."""
        ...

    def finish(self) -> str:
        """The text of an incomplete character at the end."""
        ...

    def lead(self, token: int) -> int:
        """Characters between those given out and the one this next token's first byte belongs to: 0 or 1."""
        ...

    def hide(self, count: int) -> None:
        """Leave the first bytes of the next token out of the text. Only where tokens have bytes of their own."""
        ...


class PieceDetokenizer:
    """For vocabularies whose tokens have bytes: an incremental UTF-8 decoder over them."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._hidden = 0  # bytes of the next token

    def feed(self, token: int) -> str:
        piece = self._piece(token)
        self._hidden = 0
        return self._decoder.decode(piece)

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)

    def hide(self, count: int) -> None:
        self._hidden = count

    def _piece(self, token: int) -> bytes:
        return self._pieces[token][self._hidden :] if token < len(self._pieces) else b""

    def lead(self, token: int) -> int:
        piece = self._piece(token)
        waiting = bool(self._decoder.getstate()[0])
        return int(waiting and bool(piece) and not 0x80 <= piece[0] < 0xC0)


class WindowDetokenizer:
    """For all others: decodes a short window of tokens again and takes what is new."""

    # ids[begin:read] has been given out and only serves as context; ids[read:] waits for a complete character
    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._read = 0

    def feed(self, token: int) -> str:
        self._ids.append(token)
        context = self._decode(self._ids[: self._read])
        text = self._decode(self._ids)
        if text.endswith(REPLACEMENT) and len(self._ids) - self._read < LONGEST_WAIT:
            return ""
        fresh = text[len(context) :]
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        return fresh

    def finish(self) -> str:
        context, text = self._decode(self._ids[: self._read]), self._decode(self._ids)
        self._read = len(self._ids)
        return text[len(context) :]

    def lead(self, token: int) -> int:
        return 0

    def hide(self, count: int) -> None:
        raise NotImplementedError("what part of the text a token stands for depends on its neighbours")
