"""What ends a branch, by tables small enough to read."""

from __future__ import annotations

import pytest

from samplers.programs.branch import End, Limits

PIECES = [b"<end>", b"a", b"b", b"abc", b"\xc3", b"\xa9", b""]


def limits(min_tokens: int = 0, *stops: bytes) -> Limits:
    return Limits(6, min_tokens, frozenset({0}), stops, PIECES, frozenset({0}))


@pytest.mark.parametrize(
    ("ids", "min_tokens", "stops", "end"),
    [
        ([1, 0], 0, (), End("stop", 0)),
        ([1, 0], 2, (), None),
        ([1] * 6, 0, (), End("length")),
        ([1, 2], 0, (b"ab",), End("stop")),  # across tokens
        ([3], 0, (b"b",), End("stop")),  # inside of one
        ([4, 5], 0, ("é".encode(),), End("stop")),  # a character of two tokens
        ([1, 2], 2, (b"ab",), None),
        ([1, 2, 1], 2, (b"ab", b"bbbb"), None),  # it was there too early, and a longer one makes us look back so far
        ([1, 2, 6], 2, (b"b",), None),  # nor does a token without text complete it
        ([1, 2, 1, 2], 2, (b"ab", b"bbbb"), End("stop")),
    ],
)
def test_ends(ids: list[int], min_tokens: int, stops: tuple[bytes, ...], end: End | None) -> None:
    assert limits(min_tokens, *stops).end(ids) == end
