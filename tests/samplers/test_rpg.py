"""RPG against its definition: tandem repeats by brute force, penalties by the formula, Python by hand, and the embedded
model that stops looping."""

from __future__ import annotations

import ast
import copy
import json
import math
import random
import sysconfig
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.embedded import TARGET, locate
from samplers.chain import resolve
from samplers.contract import Admission, SamplerError, Shape
from samplers.model_facts import NO_FACTS, ModelFacts
from samplers.registry import STAGES
from samplers.rpg import grammar as grammars
from samplers.rpg.grammar import BREAK, GRAMMARS, Fed, Grammar, Symbol
from samplers.rpg.python_lexemes import LexState, cut
from samplers.rpg.runs import Repetition, Runs
from samplers.rpg.stage import Readers
from samplers.stack import SamplerStack
from samplers.testing import conformance
from samplers.testing.world import World

WORDS = [
    *(bytes([byte]) for byte in range(256)), b"assert", b" assert", b"return", b" x", b"\n    ", b"pass", b" pass",
    b"if", b"elif", b" =", b" 1", b"import", b" os", b"for", b" in", b"ass", b"ert", b"ion", b"</s>",
]  # fmt: skip
END = len(WORDS) - 1
FACTS = ModelFacts(WORDS, frozenset({END}))
IDS = {word: i for i, word in enumerate(WORDS)}
PYTHON = GRAMMARS.get("python", "language")


class Letters:
    """The identity grammar: every byte is a symbol, '!' is an error."""

    name = "letters"

    def start(self) -> None:
        return None

    def feed(self, state: None, text: bytes) -> Fed:
        return Fed(None, [BREAK if byte == ord("!") else byte for byte in text])

    def close(self, state: None) -> list[Symbol]:
        return []


@pytest.fixture
def letters() -> Iterator[Grammar]:
    GRAMMARS.register(Letters)
    yield GRAMMARS.get("letters", "language")
    del GRAMMARS._items["letters"]


def tokens(text: bytes) -> list[int]:
    """One id per byte."""
    return list(text)


def symbols(text: bytes, grammar: Grammar = PYTHON) -> list[Any]:
    state, settled = grammar.feed(grammar.start(), text)
    return [*settled, *grammar.close(state)]


def runs_of(sequence: Sequence[Symbol], max_period: int = 64) -> Runs:
    runs = Runs.empty(max_period)
    for symbol in sequence:
        runs = runs.then(symbol)
    return runs


def stack_with(text: bytes, slots: int = 1, facts: ModelFacts = FACTS, **options: Any) -> SamplerStack:
    stack = SamplerStack(slots, len(WORDS), torch.device("cpu"), facts)
    chain = resolve({"rpg": {"language": "python", **options}}, len(WORDS), facts)
    stack.admit(0, chain, seed=0, choice=0, prompt_ids=tokens(text))
    return stack


def added(stack: SamplerStack, slot: int = 0, logits: torch.Tensor | None = None) -> dict[bytes, float]:
    """What the stage adds to the logits of which tokens; without `logits`, later ones are more probable."""
    row = torch.arange(len(WORDS)).unsqueeze(0) / len(WORDS) if logits is None else logits
    shaped, failures = stack.shape(row.clone(), np.array([slot]), np.zeros(1, np.int64))
    assert not failures
    changed = torch.nonzero(shaped[0] != row[0]).flatten().tolist()
    return {WORDS[i]: float(shaped[0, i] - row[0, i]) for i in changed}


def penalties(text: bytes, **options: Any) -> dict[bytes, float]:
    return added(stack_with(text, **{"top": 256, **options}))


# --- counting


def merged(sequence: Sequence[int]) -> list[int]:
    return [one for i, one in enumerate(sequence) if not i or sequence[i - 1] != one]


def repetition_by_hand(sequence: list[int], max_period: int) -> Repetition | None:
    """Straight from the definition, in O(n^2)."""
    m = len(sequence)
    for d in range(1, min(max_period, m - 1) + 1):
        length = 0
        while m - 1 - length - d >= 0 and sequence[m - 1 - length] == sequence[m - 1 - length - d]:
            length += 1
        if length // d >= 1:
            return Repetition(d, length // d, sequence[m - d], length % d == 0)
    return None


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 20))
def test_counters_equal_brute_force_at_every_prefix(sequence: list[int], max_period: int) -> None:
    for end in range(len(sequence) + 1):
        found = runs_of(sequence[:end], max_period).repetition()
        assert found == repetition_by_hand(merged(sequence[:end]), max_period)


@settings(deadline=None, max_examples=200)
@given(st.text("ab", min_size=1, max_size=5), st.text("abc", max_size=12), st.integers(2, 6))
def test_a_tandem_repeat_is_found_with_a_period_that_explains_it(pattern: str, before: str, count: int) -> None:
    text = merged((before + pattern * count).encode())
    whole = merged((pattern * count).encode())
    found = runs_of(text).repetition()
    smallest = next(
        (d for d in range(1, len(text) // 2 + 1) if text[-d:] == text[-2 * d : -d]),  # two equal blocks at the end
        None,
    )
    assert (found.period if found else None) == smallest
    if len(whole) == len(pattern) * count:  # nothing merged away, so the pattern itself is seen
        assert found is not None and found.period <= len(pattern)


def test_an_error_forgets_what_was_before() -> None:
    assert runs_of([1, 2, 1, 2, 1, 2]).repetition() == Repetition(2, 2, 1, True)
    assert runs_of([1, 2, 1, 2, BREAK, 1, 2]).repetition() is None
    assert runs_of([BREAK, 1, BREAK, 1, BREAK, 1]).repetition() is None


# --- the stage


def test_without_repetition_nothing_changes() -> None:
    stack = stack_with(b"import os\nx = 1\nif x:\n    pass\n")
    logits = torch.randn(1, len(WORDS))
    shaped, _ = stack.shape(logits, np.array([0]), np.zeros(1, np.int64))
    assert shaped is logits


def test_lambda_one_changes_nothing() -> None:
    text = b"pass\n" * 9
    assert resolve({"rpg": {"language": "python", "lambda": 1}}, len(WORDS), FACTS).stages == ()
    assert penalties(text) and not penalties(text, **{"lambda": 1.0})
    state = STAGES.get("rpg").new_state(Shape(1, len(WORDS), torch.device("cpu"), FACTS))
    assert isinstance(state, Readers)
    options = {"language": "python", "lambda": 1.0, "max_period": 64, "top": 20, "penalise": "start"}
    state.admit(0, Admission({"rpg": options}, tokens(text), []))
    assert state.of(0).outlook() is None


@pytest.mark.parametrize("lambda_", [0.9, 0.5, 0.01])
def test_the_penalty_is_copies_times_the_logarithm(lambda_: float) -> None:
    values = [penalties(b"pass\n" * n, **{"lambda": lambda_}).get(b"pass", 0.0) for n in range(1, 12)]
    expected = [copies * math.log(lambda_) for copies in range(11)]
    assert values == pytest.approx(expected, rel=1e-5)
    assert all(later < earlier for earlier, later in pairwise(values))


def test_only_what_begins_the_pattern_is_penalised() -> None:
    assert set(penalties(b"pass\n" * 3)) == {b"pass"}  # no space in front: that would be an unexpected indent
    assert set(penalties(b"if x:\n" + b"  pass\n" * 3 + b" ")) == {b" pass"}
    assert penalties(b"pass\n" * 3 + b"pass") == {}  # in the middle of a copy
    found = penalties(b"f(1)\n" * 3)
    assert {b"f", b"(", b"ass"} <= found.keys()
    assert not {b"pass", b"\n", b"#", b" ", b"</s>"} & found.keys()


def test_all_penalises_every_symbol_of_the_pattern() -> None:
    text = b"x = 1\n" * 3 + b"x"
    assert penalties(text) == {}
    assert b"=" in penalties(text, penalise="all")
    assert b"=" in penalties(text + b" ", penalise="all")
    assert set(penalties(b"x = 1\n" * 3, penalise="all")) == set(penalties(b"x = 1\n" * 3))


def test_only_the_most_probable_tokens_are_looked_at() -> None:
    stack = stack_with(b"pass\n" * 3, top=2)
    logits = torch.zeros(1, len(WORDS))
    assert added(stack, logits=logits) == {}  # no two of them are more probable than the others
    logits[0, IDS[b"if"]], logits[0, IDS[b"pass"]] = 2, 1
    assert set(added(stack, logits=logits)) == {b"pass"}
    logits[0, IDS[b"for"]] = 3
    assert added(stack, logits=logits) == {}


def test_masked_tokens_stay_masked_and_other_rows_as_they_are() -> None:
    stack = stack_with(b"pass\n" * 3, slots=2)
    stack.admit(1, resolve({}, len(WORDS)), seed=0, choice=0, prompt_ids=tokens(b"pass\n" * 3))
    logits = torch.full((2, len(WORDS)), -torch.inf)
    logits[:, IDS[b"if"]] = 0
    shaped, failures = stack.shape(logits.clone(), np.array([0, 1]), np.zeros(2, np.int64))
    assert torch.equal(shaped, logits) and not failures


def test_it_runs_in_greedy_decoding() -> None:
    chain = resolve({"temperature": 0, "rpg": {"language": "python", "lambda": 0.1}}, len(WORDS), FACTS)
    stack = SamplerStack(1, len(WORDS), torch.device("cpu"), FACTS)
    stack.admit(0, chain, seed=0, choice=0, prompt_ids=tokens(b"pass\n" * 2))
    logits = torch.full((1, len(WORDS)), -9.0)
    logits[0, IDS[b"pass"]], logits[0, IDS[b"if"]] = 1, 0
    assert stack.sample(logits, np.array([0]), np.zeros(1, np.int64)).tokens.tolist() == [IDS[b"if"]]


def test_the_report_resolves_to_itself() -> None:
    chain = resolve({"rpg": {"language": "python"}}, len(WORDS), FACTS)
    item = chain.report()[0]
    options = {"language": "python", "lambda": 0.9, "max_period": 64, "top": 20, "penalise": "start"}
    assert item == {"name": "rpg", "rpg": options}
    for sampler in ("rpg", {"name": "rpg", "rpg": {"top": 20}}):  # Python is the default language
        assert json.loads(json.dumps(resolve({"sampler": sampler}, len(WORDS), FACTS).report()))[0] == item
    assert resolve({"sampler": chain.report()}, len(WORDS), FACTS).stages == chain.stages


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ("python", "rpg"),
        ({"language": "cobol"}, "rpg.language"),
        ({"language": ["python"]}, "rpg.language"),
        ({"language": "python", "lambda": 0}, "rpg.lambda"),
        ({"language": "python", "lambda": 1.1}, "rpg.lambda"),
        ({"language": "python", "max_period": 0}, "rpg.max_period"),
        ({"language": "python", "top": 0}, "rpg.top"),
        ({"language": "python", "penalise": "some"}, "rpg.penalise"),
        ({"language": "python", "lamda": 0.9}, "rpg.lamda"),
    ],
)
def test_what_cannot_be_honoured_is_refused(value: Any, param: str) -> None:
    with pytest.raises(SamplerError) as caught:
        resolve({"rpg": value}, len(WORDS), FACTS)
    assert caught.value.param == param
    if param == "rpg.language":
        assert "python" in str(caught.value)


def test_a_model_without_pieces_is_refused() -> None:
    with pytest.raises(SamplerError, match="text of this model's tokens"):
        resolve({"rpg": {"language": "python"}}, len(WORDS), NO_FACTS)


def lines(world: World) -> ModelFacts:
    """A model of whole statements, so that random texts repeat."""
    pieces = [b"\xff"] * world.vocab
    for token, at in enumerate(world.ids.tolist()):
        pieces[at] = [b"</s>", b"pass\n", b"x = 1\n", b"f()\n"][token % 4] if token < 8 else b"y%d" % token
    return ModelFacts(pieces, frozenset(world.ids[:1].tolist()))


def test_conformance_where_texts_repeat() -> None:
    values = [
        {"rpg": {"language": "python", "lambda": 0.5, "top": 3}},
        {"rpg": {"language": "python", "lambda": 0.1, "max_period": 3, "penalise": "all"}},
    ]
    conformance("rpg", values, model=lines, vocabularies=(2, 3, 8, 17, 50_000))


# --- tokens


def test_a_word_in_parts_is_penalised_once_where_it_begins_the_statement() -> None:
    text = b"assert x\n" * 3
    assert {b"assert"} == set(penalties(text))
    assert set(penalties(text + b"ass")) == {b"ert"}  # only now it is the keyword
    assert penalties(text + b"assert") == {}  # already decided
    calls = b"f(1)\n" * 3
    assert b"ass" in penalties(calls)
    assert penalties(calls + b"ass") == {}


def test_a_control_token_begins_a_new_text() -> None:
    prompt = tokens(b"pass\n" * 5)
    for ids, count in (([*prompt, END, *tokens(b"pass\n" * 2)], 1), ([*prompt, END], 0), (prompt, 4)):
        stack = SamplerStack(1, len(WORDS), torch.device("cpu"), FACTS)
        stack.admit(0, resolve({"rpg": {"language": "python"}}, 1000, FACTS), seed=0, choice=0, prompt_ids=[])
        for token in ids:
            stack.accept(np.array([0]), torch.tensor([token]))
        fresh = stack_with(b"")
        fresh.admit(0, resolve({"rpg": {"language": "python"}}, 1000, FACTS), seed=0, choice=0, prompt_ids=ids)
        logits = torch.zeros(1, len(WORDS))
        logits[0, IDS[b"pass"]] = 1
        for one in (stack, fresh):
            assert added(one, logits=logits).get(b"pass", 0.0) == pytest.approx(count * math.log(0.9))


def test_any_sequence_of_events_equals_reading_the_history(seed: int = 0) -> None:
    """Snapshot, restore, fork and resume against a new slot with the same history."""
    chance = random.Random(seed)
    chain = resolve({"rpg": {"language": "python", "lambda": 0.7}}, len(WORDS), FACTS)
    stack = SamplerStack(4, len(WORDS), torch.device("cpu"), FACTS)
    lines = [b"x = 1\n", b"pass\n", b"if x:\n    pass\n", b"f('a' \"b)\n", b"(", b"assert x", b"\n"]
    history: dict[int, list[int]] = {0: []}
    saved: dict[int, tuple[Any, list[int]]] = {}
    stack.admit(0, chain, seed=0, choice=0, prompt_ids=[])
    seen = 0
    for _ in range(150):
        slot, event = chance.choice(sorted(history)), chance.random()
        if event < 0.08:
            child = chance.randrange(4)
            if child != slot:
                stack.fork(slot, child)
                history[child] = list(history[slot])
                saved.pop(child, None)
        elif event < 0.16:
            saved[slot] = stack.snapshot(slot), list(history[slot])
        elif event < 0.26 and slot in saved:
            state, history[slot] = saved[slot][0], list(saved[slot][1])
            stack.restore(slot, state)
        elif event < 0.3 and len(history) > 1:
            stack.free(slot)
            del history[slot]
            saved.pop(slot, None)
        else:
            for token in tokens(chance.choice(lines)):
                stack.accept(np.array([slot]), torch.tensor([token]))
                history[slot].append(token)
        for one, ids in history.items():
            fresh = SamplerStack(1, len(WORDS), torch.device("cpu"), FACTS)
            half = len(ids) // 2
            fresh.admit(0, chain, seed=0, choice=0, prompt_ids=ids[:half], output_ids=ids[half:])
            found = added(stack, one)
            assert found == added(fresh)
            seen += bool(found)
    assert seen > 20


def test_a_language_from_elsewhere(letters: Grammar) -> None:
    assert penalties(b"xababab", language="letters") == {
        word: pytest.approx(2 * math.log(0.9)) for word in WORDS if word.startswith(b"a")
    }
    assert penalties(b"xababab!", language="letters") == {}
    with pytest.raises(SamplerError, match="known: letters, python"):
        resolve({"rpg": {"language": "cobol"}}, len(WORDS), FACTS)
    with pytest.raises(ValueError, match="twice"):
        GRAMMARS.register(Letters)


@settings(deadline=None, max_examples=100)
@given(st.text("abc", max_size=40))
def test_the_identity_grammar_penalises_exactly_tandem_repeats(text: str) -> None:
    sequence = merged(text.encode())
    expected = repetition_by_hand(sequence, 64)
    state = Letters()
    reader = runs_of(state.feed(None, text.encode()).symbols)
    assert reader.repetition() == expected


class _Entry:
    group = "drafthouse.grammars"

    def __init__(self, name: str, item: Any) -> None:
        self.name, self._item = name, item

    def load(self) -> Any:
        if isinstance(self._item, Exception):
            raise self._item
        return self._item


def test_languages_come_from_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [_Entry("broken", ImportError("no such parser")), _Entry("letters", Letters)]
    monkeypatch.setattr(grammars, "entry_points", lambda group: [one for one in entries if one.group == group])
    registry = grammars.Grammars()
    assert registry.get("letters", "language").name == "letters"
    with pytest.raises(SamplerError, match="known: letters"):
        registry.get("broken", "language")


@pytest.mark.parametrize("item", [object(), type("Half", (), {"name": "half", "start": lambda self: None})])
def test_what_is_no_grammar_is_refused(item: Any) -> None:
    with pytest.raises(ValueError):
        grammars.Grammars().register(item)


# --- Python

SOURCE = b'''\
import os, sys
from a.b import (c,
    d as e)
@decorated(1)
async def f(a: int = 1, *, b=lambda x: {x: 1}) -> "x":
    """Doc
    string with 'quotes' and \\""" in it."""
    async with a as b, c: return
    for i, j in zip(x, y):
        x[1:2] = y = 'it\\'s' "and" r'\\\\'  # comment with 'quote
        x: dict[str, int] = {}; del x, y
        z += 1 if i else -.5 // 1.; w: int
    else:

        yield x
# comment
    while (n := g()):
        if x == y and not z: break
        elif x: continue
        else: raise E from None
    try:
        global q
        assert f"{x}" f'{y:>3}', """a""" ''
    except* (A, B) as e:
        nonlocal r
    finally:
        pass
match x, y:
    case [1, *_] if x:
        match = 3; match.x(); match[1]; match(2)
    case _: case = type
type X = int
class A(B): ...
x = yield
a = b if c \\
    else d
'''
PARTS = [line + b"\n" for line in SOURCE.splitlines()] + [
    b"'", b'"""', b"(", b"]", b"\\", b"\n", b"\r\n", b" ", b"\t", b"if", b"else:", b"x", b"=", b":", b".", b"#", b"$",
    b"\xc3", b"match", b"r'", b"f\"", b"return", b"lambda", b"\x00", b"1", b"    ",
]  # fmt: skip


def paths(text: bytes) -> list[str]:
    return [one if one is BREAK else one[0] for one in symbols(text)]


def test_correct_source_has_no_errors_and_the_kinds_of_its_statements() -> None:
    ast.parse(SOURCE.replace(b"type X", b"X"))  # which is newer than the oldest Python we run on
    found = paths(SOURCE)
    assert BREAK not in found
    kinds = {path.split(" ..")[0].split(" end")[0].split(" :")[0].split(" =")[0] for path in found}
    assert kinds == {
        "expression", "assert", "pass", "del", "return", "yield", "raise", "break", "continue", "import", "scope",
        "while", "for", "for else", "if", "if elif", "if else", "try", "try except", "try finally", "match",
        "match case", "class", "async", "async def", "async with", "decorator",
    }  # fmt: skip
    assert "expression = end" in found and "expression : = end" in found


@pytest.mark.slow
def test_the_standard_library_has_no_errors() -> None:
    folder = Path(sysconfig.get_paths()["stdlib"])
    wrong = [path.name for path in sorted(folder.glob("*.py")) if BREAK in symbols(path.read_bytes())]
    assert wrong == []


def test_symbols_say_how_far_the_statement_is_and_whose_block_it_is_in() -> None:
    assert symbols(b"for x in y:\n  if x: return\nx = f(1,\n2)\n") == [
        ("for", ""), ("for ..", ""), ("for .. :", ""), ("if", "for"), ("if ..", "for"), ("if .. :", "for"),
        ("return", "if"), ("return end", "if"), ("expression", ""), ("expression =", ""), ("expression = end", ""),
    ]  # fmt: skip


def assert_cut_free(text: bytes, cuts: list[int]) -> None:
    state, found, places = PYTHON.start(), [], sorted({0, *(at % (len(text) + 1) for at in cuts), len(text)})
    for begin, end in pairwise(places):
        before = copy.copy(state.__dict__)
        state, settled = PYTHON.feed(after := state, text[begin:end])
        assert after.__dict__ == before  # states are values
        found += settled
    assert [*found, *PYTHON.close(state)] == symbols(text)


def test_any_single_cut_of_the_source_gives_the_same_symbols() -> None:
    for at in range(0, len(SOURCE), 5):
        assert_cut_free(SOURCE, [at])
    assert_cut_free(SOURCE, list(range(len(SOURCE))))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PARTS), max_size=15), st.lists(st.integers(0, 10**6), max_size=30))
def test_symbols_do_not_depend_on_cuts(parts: list[bytes], cuts: list[int]) -> None:
    assert_cut_free(b"".join(parts), cuts)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=10))
def test_any_bytes_can_be_read(text: bytes, cuts: list[int]) -> None:
    assert_cut_free(text, cuts)


@settings(deadline=None, max_examples=20)
@given(st.randoms(use_true_random=False))
def test_names_and_values_do_not_matter(chance: random.Random) -> None:
    def version() -> bytes:
        name, value = (
            chance.choice(["a", "foo", "iffy", "returned", "été"]),
            chance.choice(["1", "'x'", "[1, 2]", "g(y)"]),
        )
        condition = chance.choice(["n > 3", "not n", "x in (1, 2)", "f'{n}' == \"\""])
        return f"    elif {condition}:\n        {name} = {value}\n".encode()

    found = [penalties(b"if x:\n    if y:\n        a = 1\n" + version() + version() + version()) for _ in range(2)]
    assert found[0] == found[1]
    more = [penalties(b"def f():\n    if y:\n        a = 1\n" + version() + version() + version() + b"    ")]
    assert more[0][b"elif"] == pytest.approx(2 * math.log(0.9))
    assert b"pass" not in more[0]


@pytest.mark.parametrize(
    "line",
    [
        b"x = 'open", b"foo bar", b"x = 1 2", b"x = )", b"(]", b"x $ y", b"x = \\ y", b"  indented", b"elif x:",
        b"if x", b"x = return", b"return x:", b"x = 1 +", b"async x", b"'a' b", b"case 1:", b"x ` y", b"for x in y",
    ],
)  # fmt: skip
def test_an_error_suspends_until_the_next_statement(line: bytes) -> None:
    before, after = b"pass\n" * 3, b"pass\n" * 2
    assert BREAK in symbols(before + line + b"\n")
    assert penalties(before + line) == {}
    assert penalties(before + line + b"\n") == {}
    assert penalties(before + line + b"\n" + after)[b"pass"] == pytest.approx(math.log(0.9))


def test_an_open_bracket_ends_at_a_line_that_can_only_be_a_statement() -> None:
    found = paths(b"x = f(1,\nreturn 2\n")
    assert found[found.index(BREAK) + 1 :] == ["return", "return ..", "return .. end"]


def test_prose_is_no_repetition() -> None:
    assert penalties(b"Here is the code.\nIt does what you want.\nIt is short.\nHave fun with it!\n") == {}


def test_a_long_string_is_not_read_again_and_again() -> None:
    state = LexState()
    for _ in range(1000):
        state, lexemes = cut(state, b"x = '''" + b"a" * 5000 if not state.quote else b"b" * 50 + b"''")
        assert len(state.held) <= 2 or not state.quote
    assert not any(kind == "bad" for kind, _ in lexemes)


# --- the embedded model


def repeated_symbols(prompt: str, text: bytes) -> int:
    """At how many of the text's symbols a tail repetition stands."""
    state, before = PYTHON.feed(PYTHON.start(), prompt.encode())
    runs, repeated = runs_of(before), 0
    for symbol in PYTHON.feed(state, text).symbols:
        runs = runs.then(symbol)
        repeated += runs.repetition() is not None
    return repeated


@pytest.mark.slow
def test_the_embedded_model_loops_less() -> None:
    from transformers import AutoModelForCausalLM

    from server.text.codec import TextCodec

    codec = TextCodec.load(locate(TARGET))
    model = AutoModelForCausalLM.from_pretrained(locate(TARGET)).eval()
    pieces = codec.pieces()
    assert pieces is not None
    facts = ModelFacts(pieces, codec.special_ids)
    vocabulary = model.config.vocab_size
    prompt = "import os\nimport sys\n"
    arms: list[dict[str, Any]] = [{}, {"rpg": {"lambda": 0.9}}, {"rpg": {"lambda": 0.7}}, {"rpg": {"lambda": 0.5}}]
    slots, prompt_ids = np.arange(len(arms)), codec.encode_plain(prompt)
    stack = SamplerStack(len(arms), vocabulary, torch.device("cpu"), facts)
    for slot, fields in enumerate(arms):
        chain = resolve({"temperature": 0, **fields}, vocabulary, facts)
        stack.admit(slot, chain, seed=0, choice=0, prompt_ids=prompt_ids)
    texts = [b""] * len(arms)
    step, past = torch.tensor([[model.config.bos_token_id, *prompt_ids]] * len(arms)), None
    with torch.no_grad():
        for position in range(60):
            answer = model(step, past_key_values=past, use_cache=True)
            past = answer.past_key_values
            drawn = stack.sample(answer.logits[:, -1].float(), slots, np.full(len(arms), position)).tokens
            stack.accept(slots, drawn)
            for slot, token in enumerate(drawn.tolist()):
                texts[slot] += b"" if token in codec.special_ids else pieces[token]
            step = drawn.unsqueeze(1)
    repeated = [repeated_symbols(prompt, text) for text in texts]
    assert repeated[0] > 30  # the model says `import sys` and nothing else
    assert repeated == sorted(repeated, reverse=True)
    assert repeated[1] < repeated[0] and repeated[3] < repeated[0] / 4
