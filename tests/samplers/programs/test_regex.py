"""Regular expressions over tokens, against Python's own on every short text."""

from __future__ import annotations

import itertools
import random
import re

import pytest
import torch

from samplers.contract import SamplerError
from samplers.model_facts import ModelFacts
from samplers.programs import regex as module
from samplers.programs.contract import ProgramError
from samplers.programs.regex import LONGEST_BYTES, State, compiled

LETTERS = b"ab"
END = 0
PIECES = [b"<end>", b"a", b"b", b"ab", b"ba", b"", b"a", b"bab", b"\xff"]
FACTS = ModelFacts(PIECES, frozenset({END}))
V = len(PIECES)


def start(regex: str, facts: ModelFacts = FACTS) -> State:
    return compiled(regex, facts, "regex")


def ids(state: State, facts: ModelFacts = FACTS, ending: tuple[int, ...] = (END,)) -> list[int]:
    assert facts.pieces is not None
    return state.allowed(len(facts.pieces), ending).nonzero().flatten().tolist()


def expression(rng: random.Random, depth: int) -> str:
    """A random expression over a and b."""
    if depth == 0:
        return rng.choice(["a", "b", "ab", "[ab]", "ba", "."])
    one, other = expression(rng, depth - 1), expression(rng, depth - 1)
    return rng.choice([one + other, f"({one}|{other})", f"({one})*", f"({one})?{other}", f"({one}){{1,2}}"])


@pytest.mark.parametrize("seed", range(25))
def test_allows_exactly_what_can_still_match(seed: int) -> None:
    """The texts of up to three tokens, by Python's `re`: one may follow iff some text that matches begins so."""
    rng = random.Random(seed)
    regex = expression(rng, 3)
    matches = {
        text
        for n in range(16)
        for text in map(bytes, itertools.product(LETTERS, repeat=n))
        if n <= 12 and re.fullmatch(regex.encode(), text)
    }
    begun = {text[:i] for text in matches for i in range(len(text) + 1)}
    if not matches:
        return
    first = start(regex)
    seen = 0
    for length in range(4):
        for path in itertools.product([1, 2, 3, 4], repeat=length):
            text = b"".join(PIECES[token] for token in path)
            if text not in begun or len(text) > 6:
                continue
            state = first.copy().advance(path)
            assert state.accepting == (text in matches)
            follow = {token for token in (1, 2, 3, 4, 6, 7) if text + PIECES[token] in begun}
            assert set(ids(state)) == follow | ({END} if text in matches else set()), (regex, text)
            seen += 1
    assert seen > 1


def test_every_way_to_split_a_text_that_must_follow() -> None:
    assert ids(start("abab")) == [1, 3, 6]
    assert ids(start("bab")) == [2, 4, 7]


def test_copies_go_their_own_ways() -> None:
    one = start("(ab|b)*")
    other = one.copy().advance([1])
    assert ids(other) == [2, 4, 7] and ids(one) == [END, 1, 2, 3, 4, 6, 7]
    assert not other.accepting and one.accepting
    one.advance([2])
    assert start("(ab|b)*").advance([2]).copy().accepting


def test_special_ids_never_and_ending_ids_where_it_matches() -> None:
    facts = ModelFacts([b"a", b"<s>", b"b", b"<", b"s", b">"], frozenset({1}))
    assert ids(start("(a|<s>)+", facts), facts, ()) == [0, 3]
    state = start("(a|b)+", facts)
    assert ids(state, facts, (1, 2)) == [0]  # 2 ends the text: its letters are no part of it
    assert ids(state.advance([0]), facts, (1, 2)) == [0, 1, 2]


def test_characters_of_several_tokens() -> None:
    facts = ModelFacts([b"\xc3", b"\xa9", b"\xa8", "é".encode(), b"e"])
    state = start("é", facts)
    assert ids(state, facts, ()) == [0, 3]
    assert ids(state.advance([0]), facts, ()) == [1]
    assert state.advance([1]).accepting


def test_padded_vocabularies_and_shorter_rows() -> None:
    state = start("a*")
    assert state.allowed(V + 5, (END, V + 9)).nonzero().flatten().tolist() == [END, 1, 6]
    assert state.allowed(2, ()).tolist() == [False, True]
    assert state.allowed(V, ()).dtype == torch.bool


def test_a_state_without_tokens_allows_nothing() -> None:
    """The vocabulary has no 'q': nothing follows a 't' that needs one."""
    facts = ModelFacts([b"t", b"a", b"ta"])
    state = start("tq|ta", facts)
    assert ids(state, facts, ()) == [0, 2]
    assert ids(start("tq|a", facts).advance([0]), facts, ()) == []
    assert not start("tq|a", facts).advance([0]).accepting
    assert ids(start("(t|a)", facts).advance([0]), facts, (1,)) == [1]  # a complete match


def test_bytes_without_a_match_are_not_entered() -> None:
    facts = ModelFacts([b"t", b"a"])
    assert ids(start(r"a|t[^\s\S]", facts), facts, ()) == [1]


@pytest.mark.parametrize(
    ("regex", "words"),
    [
        ("(", "unclosed group"),
        ("a{2,1}", "invalid repetition"),
        ("(?=a)b", "look-around"),
        (r"\ba", "lookarounds"),
        ("a^b", "lookarounds"),
        (r"(a)\1", "backreferences"),
        (r"[^\s\S]", "matches nothing"),
        ("q", "matches nothing"),
        ("a" * (LONGEST_BYTES + 1), "longer than"),
        ("a\ud800", "surrogate"),
    ],
)
def test_refusals_name_the_field(regex: str, words: str) -> None:
    with pytest.raises(SamplerError, match=words) as caught:
        compiled(regex, FACTS, "sampler.regex")
    assert caught.value.param == "sampler.regex"
    assert "'sampler.regex'" in str(caught.value) and "\n" not in str(caught.value)


def test_needs_the_text_of_tokens() -> None:
    with pytest.raises(SamplerError, match="text is known") as caught:
        compiled("a", ModelFacts(), "regex")
    assert caught.value.param == "regex"


@pytest.mark.parametrize("regex", ['a/\nstart: "b"', "a/b", 'b" | "a', "%ignore"])
def test_text_is_text(regex: str) -> None:
    """Nothing in an expression is read as a part of a grammar."""
    facts = ModelFacts([bytes([byte]) for byte in range(255)])
    sample = {'b" | "a': b'b" '}.get(regex, regex.encode())
    assert start(regex, facts).advance(list(sample)).accepting


def test_matches_the_whole_text_with_and_without_anchors() -> None:
    for regex in ("ab", "^ab$", r"\Aab\z"):
        state = start(regex)
        assert ids(state) == [1, 3, 6] and ids(state.advance([3])) == [END]


def test_the_empty_expression() -> None:
    assert start("").accepting and ids(start("")) == [END]


def test_compiles_once(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, made = ModelFacts(PIECES), []
    matcher = module.LLMatcher

    class Counting:
        grammar_from_regex = staticmethod(matcher.grammar_from_regex)

        def __new__(cls, *args: object, **options: object) -> object:
            made.append(args)
            return matcher(*args, **options)

    monkeypatch.setattr(module, "LLMatcher", Counting)
    for _ in range(3):
        start("a*b", facts), start("b*a", facts)
    assert len(made) == 2


def test_too_complex_to_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIMITS", module.LLParserLimits(step_lexer_fuel=5, verbose_errors=False))
    with pytest.raises(ProgramError) as caught:
        start("(.*a){30}", ModelFacts(PIECES)).allowed(V, ())
    assert caught.value.code == "regex_too_complex"
