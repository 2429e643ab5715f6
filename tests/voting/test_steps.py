"""Where steps end: nothing is lost, nothing is empty, and no text or regex takes long."""

from __future__ import annotations

import contextlib
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplers.contract import SamplerError
from voting import steps
from voting.steps import MOST_STEPS, SEGMENTATIONS, segmented

REGEXES = [r"\n+", r"(?m)^", r"\b", "x*", r"\C", "", r"[;,] *", r"\Qa"]
TEXTS = st.lists(
    st.sampled_from(
        ["a", "B", "1", " ", "  ", "\n", "\r\n", "\t", ".", ". ", "! ", "?", ")", '"', "…", "。", "é", "😀"]
    ),
    max_size=60,
).map("".join)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("one\n\ntwo\nand more\n\n\n three", ["one\n\n", "two\nand more\n\n\n", " three"]),
        ("one\n  \t\ntwo", ["one\n  \t\n", "two"]),
        ("one\r\n\r\ntwo\r\n", ["one\r\n\r\n", "two\r\n"]),
        ("\n\n one\n\n", ["\n\n one\n\n"]),
        ("one", ["one"]),
        ("", []),
        (" \n\n ", [" \n\n "]),
    ],
)
def test_blank_lines(text: str, found: list[str]) -> None:
    assert segmented(text) == segmented(text, "blank_line") == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a = 1\n    b = 2\n\nc\n", ["a = 1\n", "    b = 2\n\n", "c\n"]),
        ("\n\na\n \n", ["\n\na\n \n"]),
    ],
)
def test_lines(text: str, found: list[str]) -> None:
    assert segmented(text, "line") == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It is 3.5. Is it? Yes! So", ["It is 3.5.", " Is it?", " Yes!", " So"]),
        ('He said "no." Then he left.)\nThe end...', ['He said "no."', " Then he left.)\n", "The end..."]),
        ("Some, e.g. the first. One", ["Some, e.g. the first.", " One"]),  # it goes on in lower case
        ("1. Add. (b) Take. C. Done.", ["1. Add.", " (b) Take.", " C. Done."]),  # the number of an item is no sentence
        ("Heading\n\nText. \n \n More", ["Heading\n\n", "Text. \n \n", " More"]),
        ("三加四。等于七！」对", ["三加四。", "等于七！」", "对"]),
        ("Wait ... what", ["Wait ... what"]),
    ],
)
def test_sentences(text: str, found: list[str]) -> None:
    assert segmented(text, "sentence") == found


@pytest.mark.parametrize(
    ("regex", "text", "found"),
    [
        (r"; *", "a; b;c", ["a; ", "b;", "c"]),
        (r"\n", "\na\n\nb", ["\n", "a\n", "\n", "b"]),  # to the letter, unlike `line`
        (r"(?m)^", "a\nb\nc", ["a\n", "b\n", "c"]),
        (r"Z", "abc", ["abc"]),
        (r"", "abc", ["a", "b", "c"]),
        (r"é|ü", "aéüb", ["aé", "ü", "b"]),
        (r"a", "", []),
    ],
)
def test_a_step_ends_where_a_match_ends(regex: str, text: str, found: list[str]) -> None:
    assert segmented(text, {"regex": regex}) == found


@given(TEXTS, st.sampled_from([*SEGMENTATIONS, *({"regex": regex} for regex in REGEXES)]))
def test_steps_are_the_text(text: str, segment: Any) -> None:
    found = segmented(text, segment)
    assert "".join(found) == text
    assert all(found)
    if isinstance(segment, str) and text.strip():
        assert all(step.strip() for step in found)


def test_there_are_not_too_many() -> None:
    assert len(segmented("a\n" * MOST_STEPS, "line")) == MOST_STEPS
    for segment in ("line", {"regex": r"\n"}):
        with pytest.raises(SamplerError) as caught:
            segmented("a\n" * (MOST_STEPS + 1), segment)
        assert caught.value.param == "segment"


@pytest.mark.parametrize("regex", ["(", "a" * 1001, "(?:a{100}){100}", "(?=a)", r"(a)\1"])
def test_what_is_no_regex_is_refused(regex: str) -> None:
    with pytest.raises(SamplerError) as caught:
        segmented("aa", {"regex": regex})
    assert caught.value.param == "segment.regex"


@pytest.mark.parametrize("unit", ["\n", " ", ".", ".)", ". ", "1. ", "a. ", "\n ", "\t\n.", "。", "\n\n  "])
@pytest.mark.parametrize("segment", SEGMENTATIONS)
def test_no_text_takes_long(unit: str, segment: str) -> None:
    began = time.process_time()
    with contextlib.suppress(SamplerError):
        segmented(unit * 100_000, segment)
    assert time.process_time() - began < 2  # a tenth of a second; minutes where it is quadratic


def test_no_regex_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "LONGEST_SEARCH_S", 0.05)
    text = "".join(random.Random(0).choices("ab", k=100_000))  # each search below reads to its end
    with pytest.raises(SamplerError, match="takes more than") as caught:
        segmented(text, {"regex": r"[ab]*a[ab]{300}Z|b"})
    assert caught.value.param == "segment.regex"
