"""StopMatcher against a definition in one line per rule."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.text.stop import StopMatcher

ALPHABET = "ab<é"
texts = st.text(ALPHABET, max_size=40)
stop_lists = st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=5)


def reference(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The earliest end wins, then the longest."""
    ends = [
        (start + len(stop), start, stop) for stop in stops for start in range(len(text)) if text.startswith(stop, start)
    ]
    if not ends:
        return text, None
    end, start, stop = min(ends)
    return text[: end if include else start], stop


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(borders)]


@given(texts, stop_lists, st.lists(st.integers(0, 50), max_size=20), st.booleans())
@example("ababab<", ["abab<", "b<"], [1, 2, 3], False)
def test_any_chunking_gives_the_whole_and_never_leaks(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    whole, matched = reference(text, stops, include)
    matcher, out = StopMatcher(stops, include), ""
    for piece in pieces_of(text, cuts):
        out += matcher.feed(piece)
        assert whole.startswith(out)  # nothing was released that a stop string takes back
    if matcher.matched is None:
        out += matcher.flush()
    assert (out, matcher.matched) == (whole, matched)


@given(texts, stop_lists)
def test_text_is_released_as_soon_as_it_is_certain(text: str, stops: list[str]) -> None:
    matcher, out, seen = StopMatcher(stops), "", ""
    for char in text:
        out += matcher.feed(char)
        seen += char
        if matcher.matched is not None:
            return
        held = seen[len(out) :]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


@given(texts, stop_lists, st.integers(0, 40))
def test_matches_that_end_while_unarmed_do_not_count(text: str, stops: list[str], first: int) -> None:
    ends = [
        (start + len(stop), start, stop)
        for stop in stops
        for start in range(len(text))
        if text.startswith(stop, start) and start + len(stop) > first
    ]
    expected = text[: min(ends)[1]] if ends else text
    matcher, out = StopMatcher(stops), ""
    for at, char in enumerate(text):
        out += matcher.feed(char, armed=at >= first)
    if matcher.matched is None:
        out += matcher.flush()
    # a stop that began in text already given out cannot take that back
    assert out == expected or (ends and out.startswith(expected) and len(out) <= first)


@pytest.mark.parametrize(
    ("text", "stops", "expected", "matched"),
    [
        ("one two three", ["three", "two"], "one ", "two"),
        ("abcd", ["bcd", "cd", "abcd"], "", "abcd"),  # all end together: the longest
        ("xab", ["abc"], "xab", None),
        ("aaab", ["aab"], "a", "aab"),
        ("same", [], "same", None),
    ],
)
def test_examples(text: str, stops: list[str], expected: str, matched: str | None) -> None:
    matcher = StopMatcher(stops)
    out = "".join(map(matcher.feed, text)) + matcher.flush()
    assert (out, matcher.matched) == (expected, matched)


def test_many_long_stops_stay_fast() -> None:
    stops = ["a" * length for length in range(2, 1024)]
    matcher = StopMatcher([stop + "b" for stop in stops])
    out = "".join(matcher.feed("a") for _ in range(1500))
    assert len(out) == 1500 - 1023
