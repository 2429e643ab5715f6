"""Events: what they hold for, that nothing they rule out early could have come to hold, and what requests may ask."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from samplers.contract import SamplerError
from samplers.model_facts import NO_FACTS, ModelFacts
from samplers.programs import event_fields
from samplers.programs.branch import End, Limits
from samplers.programs.classifiers import CLASSIFIERS
from samplers.programs.contract import Setting, Task
from samplers.programs.events import Event
from samplers.programs.text import Text
from samplers.rng import Stream

PIECES = [b"<end>", b"a", b"b", b"\xc3", b"\xa9", b"\n", b"<s>"]
MODEL = ModelFacts(pieces=PIECES, special_ids=frozenset({0, 6}))
VOCAB = len(PIECES)
MAX_TOKENS = 4


class Judge:
    """Half as likely for every token; says which texts it was asked about."""

    name = "judge"

    def __init__(self) -> None:
        self.asked: list[Sequence[Text]] = []

    def probabilities(self, prompt_ids: Sequence[int], texts: Sequence[Text]) -> list[float]:
        self.asked.append(texts)
        return [0.5 ** len(text.ids) for text in texts]


@pytest.fixture
def judge() -> Iterator[Judge]:
    one = Judge()
    CLASSIFIERS.register(one)
    yield one
    del CLASSIFIERS._items[one.name]


def make(parts: dict[str, Any], *, prompt: Sequence[int] = (1, 2, 0), stops: tuple[bytes, ...] = ()) -> Event:
    limits = Limits(MAX_TOKENS, 0, frozenset({0}), stops, PIECES, MODEL.special_ids)
    return Event(event_fields.parse(parts, "event", MODEL), Task({}, 1, prompt, limits, Stream(0, 0), MODEL))


def holds(event: Event, ids: Sequence[int], end: End | None = None) -> bool:
    """Of a text given by its tokens, the ending one included."""
    end = end or (End("stop", 0) if ids[-1:] == [0] else End("length"))
    return event.holds([event.text(ids, end)])[0]


@pytest.mark.parametrize(
    "parts, good, bad",
    [
        ({"min_len": 1}, [[1, 0], [1]], [[0]]),
        ({"max_len": 1}, [[1, 0], [0], [1]], [[1, 1, 0], [1, 1]]),
        ({"finished": True}, [[0], [1, 0]], [[1, 1, 1, 1]]),
        ({"no_repeat": {"n": 1}}, [[1, 2, 0], [0]], [[1, 2, 1, 0]]),
        ({"no_repeat": {"n": 2}}, [[1, 1, 0], [1, 1, 2, 2]], [[1, 1, 1, 0], [1, 2, 1, 2]]),
        ({"no_repeat": {"n": 2, "max_count": 2}}, [[1, 1, 1, 0]], [[1, 1, 1, 1]]),
        ({"no_prompt_copy": {"n": 2}}, [[2, 1, 0], [2, 0], [0]], [[1, 2, 0], [2, 1, 2]]),
        ({"no_prompt_copy": {"n": 1}}, [[3, 4, 0], [0]], [[3, 1, 0], [2]]),
        ({"regex_not": "ab"}, [[1, 1, 0], [2, 1]], [[1, 2, 0], [2, 1, 2], [1, 6, 2]]),
        ({"regex_not": "<end>|<s>"}, [[1, 0], [6]], []),
        ({"regex_not": "é"}, [[3, 0], [4, 3], [3, 1, 4]], [[3, 4], [1, 3, 4, 1]]),
        ({"regex_not": r"^\s*$"}, [[5, 1]], [[0], [5, 5, 0], [6, 0]]),
        ({"regex_not": r"\ba\b"}, [[1, 1, 0]], [[1, 5, 2], [1, 0]]),
        ({"min_len": 2, "regex_not": "b"}, [[1, 1, 0]], [[1, 0], [1, 2, 0]]),
    ],
)
def test_what_an_event_holds_for(parts: dict[str, Any], good: list[list[int]], bad: list[list[int]]) -> None:
    event = make(parts)
    assert [holds(event, ids) for ids in good + bad] == [True] * len(good) + [False] * len(bad)


def test_a_stop_string_finishes_a_text() -> None:
    event = make({"finished": True, "min_len": 2})
    assert make({"finished": True}, stops=(b"b",)).allowed([[1, 1, 1]], VOCAB).all()
    assert holds(event, [1, 2], End("stop"))
    assert not holds(event, [2], End("stop"))


EVENTS: list[dict[str, Any]] = [
    {"min_len": 2},
    {"max_len": 2},
    {"min_len": 4},
    {"max_len": 0},
    {"finished": True},
    {"no_repeat": {"n": 1}},
    {"no_repeat": {"n": 2}},
    {"no_repeat": {"n": 1, "max_count": 2}},
    {"no_prompt_copy": {"n": 1}},
    {"no_prompt_copy": {"n": 2}},
    {"no_prompt_copy": {"n": 3}},
    {"no_repeat": {"n": 2}, "no_prompt_copy": {"n": 2}, "min_len": 1, "max_len": 3},
    *(
        {"regex_not": regex}
        for regex in ["ab", "a", "b$", "(?m)a$", "(?m)^b", r"\bab\b", r"\Qab", "a.*b", "(?i)A", "é", ".b", "[^a]"]
    ),
    {"regex_not": r"a\b"},
    {"regex_not": "^$"},
    {"regex_not": r"a\z"},
]


@pytest.mark.parametrize("parts", EVENTS, ids=str)
@pytest.mark.parametrize("prompt", [(1, 2, 1, 0), (2, 2), (1,)])
def test_what_is_ruled_out_early_could_not_have_come_to_hold(parts: dict[str, Any], prompt: tuple[int, ...]) -> None:
    event = make(parts, prompt=prompt)
    some = [0, 1, 2, 5] if parts.get("regex_not") != "é" else [0, 3, 4]

    def explore(ids: list[int], lost: bool) -> bool:
        """Whether a text that begins so is one the event holds for."""
        if ids[-1:] == [0] or len(ids) == MAX_TOKENS:
            good = holds(event, ids)
        else:
            allowed = event.allowed([ids], VOCAB)[0]
            gone = {token: lost or not bool(allowed[token]) for token in some}
            for token in some:
                text = event.text([*ids, token], None)
                ends = token == 0 or len(ids) + 1 == MAX_TOKENS
                gone[token] = gone[token] or (not ends and not event.admits(text))
            good = any([explore([*ids, token], gone[token]) for token in some])
        assert not (good and lost)
        return good

    assert explore([], False)


@pytest.mark.parametrize(
    "parts, ids, forbidden",
    [
        ({"min_len": 1}, [], {0}),
        ({"min_len": 1}, [1], set()),
        ({"max_len": 1}, [1], {1, 2, 3, 4, 5, 6}),
        ({"finished": True}, [1, 1], set()),
        ({"finished": True}, [1, 1, 1], {1, 2, 3, 4, 5, 6}),
        ({"no_repeat": {"n": 1}}, [1, 2], {1, 2}),
        ({"no_repeat": {"n": 2}}, [1, 2, 1], {2}),
        ({"no_repeat": {"n": 2, "max_count": 2}}, [1, 2, 1], set()),
        ({"no_prompt_copy": {"n": 2}}, [1], {2}),
        ({"no_prompt_copy": {"n": 2}}, [2], set()),  # 0 follows it in the prompt, but is no part of an output's text
        ({"no_prompt_copy": {"n": 3}}, [1], set()),
    ],
)
def test_tokens_ruled_out(parts: dict[str, Any], ids: list[int], forbidden: set[int]) -> None:
    allowed = make(parts).allowed([[1, 1, 1], ids], VOCAB)[1]
    assert {token for token in range(VOCAB) if not allowed[token]} == forbidden


@pytest.mark.parametrize(
    "regex, ids, possible",
    [
        ("b", [1, 2], False),
        (r"b\b", [2], True),  # a letter may follow
        (r"b\b", [2, 1], True),
        (r"b\b", [2, 5], False),
        (r"b\B", [2], True),
        (r"b\b|b\B", [2], False),  # one or the other
        (r"(?m)b$|b\B", [2], True),  # a sign may follow
        (r"(?m)b$|b\b", [2], True),
        ("b$", [2], True),
        ("(?m)b$", [2, 1], True),
        ("(?m)b$", [2, 5], False),
        (r"\Qb", [2], False),
        ("é", [3], True),
        ("é", [3, 4], False),
        ("a.", [1], True),
        ("a.", [1, 3], True),  # half a character
        (".*", [1], False),
    ],
)
def test_a_match_rules_a_text_out_as_soon_as_it_cannot_be_undone(regex: str, ids: list[int], possible: bool) -> None:
    event = make({"regex_not": regex})
    assert event.admits(event.text(ids, None)) is possible


def test_expressions_that_backtracking_does_not_survive() -> None:
    event = make({"regex_not": "(a*)*c|(a|aa)+d"})
    text = Text([1] * 20_000, End("length"), Limits(20_000, pieces=PIECES))
    start = time.perf_counter()
    assert event.holds([text]) == [True]
    assert time.perf_counter() - start < 1


def test_a_classifier_is_asked_about_all_texts_at_once(judge: Judge) -> None:
    event = make({"classifier": {"id": "judge", "threshold": 0.25}, "min_len": 1})
    texts = [event.text(ids, End("stop", 0)) for ids in ([1, 0], [1, 2, 0], [1, 2, 1, 0], [0])]
    assert event.holds(texts) == [True, True, False, False]
    assert event.probabilities(texts) == [0.5, 0.25, 0.125, 1.0]
    assert [len(asked) for asked in judge.asked] == [4, 4]
    assert [str(text) for text in judge.asked[0]] == ["a", "ab", "aba", ""]


@pytest.mark.parametrize("said", [[math.nan], [1.5], [-0.1], [], [0.5, 0.5]])
def test_what_is_no_probability_is_an_error(judge: Judge, said: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "probabilities", lambda prompt_ids, texts: said)
    event = make({"classifier": {"id": "judge"}})
    with pytest.raises(ValueError, match="judge"):
        event.probabilities([event.text([1], None)])


def test_fields_get_their_defaults_and_null_is_absent(judge: Judge) -> None:
    given = {
        "no_repeat": {"n": 3, "max_count": None},
        "classifier": {"id": "judge"},
        "max_len": None,
        "finished": False,
    }
    assert event_fields.parse(given, "event", MODEL) == {
        "no_repeat": {"n": 3, "max_count": 1},
        "classifier": {"id": "judge", "threshold": 0.5},
    }


@pytest.mark.parametrize(
    "value, param",
    [
        ("short", "event"),
        ([], "event"),
        ({}, "event"),
        ({"finished": False}, "event"),
        ({"min_len": None}, "event"),
        ({"length": 3}, "event.length"),
        ({"min_len": -1}, "event.min_len"),
        ({"min_len": 1.5}, "event.min_len"),
        ({"max_len": True}, "event.max_len"),
        ({"min_len": 3, "max_len": 2}, "event"),
        ({"finished": 1}, "event.finished"),
        ({"no_repeat": 3}, "event.no_repeat"),
        ({"no_repeat": {}}, "event.no_repeat.n"),
        ({"no_repeat": {"n": 0}}, "event.no_repeat.n"),
        ({"no_repeat": {"n": 257}}, "event.no_repeat.n"),
        ({"no_repeat": {"n": 2, "max_count": 0}}, "event.no_repeat.max_count"),
        ({"no_repeat": {"n": 2, "m": 0}}, "event.no_repeat.m"),
        ({"no_prompt_copy": {"n": None}}, "event.no_prompt_copy.n"),
        ({"no_prompt_copy": {"n": 2, "max_count": 1}}, "event.no_prompt_copy.max_count"),
        ({"regex_not": ""}, "event.regex_not"),
        ({"regex_not": 5}, "event.regex_not"),
        ({"regex_not": "("}, "event.regex_not"),
        ({"regex_not": "(?=a)"}, "event.regex_not"),
        ({"regex_not": "\ud800"}, "event.regex_not"),
        ({"regex_not": "a" * 1001}, "event.regex_not"),
        ({"regex_not": r"(\pL{100}){9}"}, "event.regex_not"),
        ({"classifier": "judge"}, "event.classifier"),
        ({"classifier": {"threshold": 0.5}}, "event.classifier.id"),
        ({"classifier": {"id": 5}}, "event.classifier.id"),
        ({"classifier": {"id": "nobody"}}, "event.classifier.id"),
        ({"classifier": {"id": "judge", "threshold": 1.5}}, "event.classifier.threshold"),
    ],
)
def test_malformed_events_are_refused(judge: Judge, value: Any, param: str) -> None:
    with pytest.raises(SamplerError) as error:
        event_fields.parse(value, "event", MODEL)
    assert error.value.param == param


def test_an_unknown_classifier_lists_the_known_ones(judge: Judge) -> None:
    with pytest.raises(SamplerError, match="unknown classifier 'nobody'; known: judge"):
        event_fields.parse({"classifier": {"id": "nobody"}}, "event", MODEL)


def test_regular_expressions_need_the_text_of_tokens() -> None:
    with pytest.raises(SamplerError) as error:
        event_fields.parse({"regex_not": "a"}, "event", NO_FACTS)
    assert error.value.param == "event.regex_not"


@pytest.mark.parametrize(
    "parts, setting",
    [
        ({"min_len": 9}, Setting(n=1, max_tokens=8)),
        ({"max_len": 2}, Setting(n=1, max_tokens=8, min_tokens=3)),
    ],
)
def test_events_that_the_limits_exclude_are_refused(parts: dict[str, Any], setting: Setting) -> None:
    with pytest.raises(SamplerError, match="cannot come about"):
        event_fields.check(parts, setting)
    event_fields.check(parts, Setting(n=1, max_tokens=9, min_tokens=2))
