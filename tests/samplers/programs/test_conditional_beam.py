"""Conditional beam search against enumeration, plain beam search and a slow reference."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest

from samplers.contract import SamplerError
from samplers.model_facts import ModelFacts
from samplers.programs.beam import Beam
from samplers.programs.classifiers import CLASSIFIERS
from samplers.programs.conditional_beam import ConditionalBeam
from samplers.programs.contract import ProgramError, Setting
from samplers.programs.text import Text
from samplers.testing.program_world import Outcome, decode, with_defaults
from tests.samplers.programs.beam_reference import Ids, Toy, beam_search, exact_v

PROGRAM = ConditionalBeam()
PIECES = [b"", b"a", b"b", b"c", b"d"]
MODEL = ModelFacts(pieces=PIECES, special_ids=frozenset({0}))
PROMPT = (1, 2, 1, 0)
SEEDS = range(8)
ALL = 32  # beams enough for every prefix of the toy model to be kept with all that can follow


def counts(ids: Ids, n: int) -> list[int]:
    grams = [ids[at : at + n] for at in range(len(ids) - n + 1)]
    return [grams.count(gram) for gram in grams]


def text(ids: Ids) -> Ids:
    return ids[:-1] if ids[-1:] == (0,) else ids


# each event and what it means, of the tokens of a whole output
EVENTS: list[tuple[dict[str, Any], Callable[[Ids], bool]]] = [
    ({"min_len": 2}, lambda ids: len(text(ids)) >= 2),
    ({"max_len": 2}, lambda ids: len(text(ids)) <= 2),
    ({"min_len": 1, "finished": True}, lambda ids: len(text(ids)) >= 1 and ids[-1] == 0),
    ({"no_repeat": {"n": 1}}, lambda ids: max(counts(text(ids), 1), default=0) <= 1),
    ({"no_repeat": {"n": 2}, "min_len": 3}, lambda ids: len(text(ids)) > 2 and max(counts(text(ids), 2)) <= 1),
    ({"no_prompt_copy": {"n": 2}}, lambda ids: not re.search("12|21", "".join(map(str, text(ids))))),
    ({"regex_not": "^$|a$"}, lambda ids: text(ids) != () and text(ids)[-1] != 1),
    ({"regex_not": "ab", "finished": True}, lambda ids: (1, 2) not in pairwise(ids) and ids[-1] == 0),
]
ids_of_events = [json.dumps(event) for event, _ in EVENTS]


def run(toy: Toy, event: dict[str, Any], width: int, n: int | None = None, **values: Any) -> Outcome:
    given = {"beam_width": width, "event": PROGRAM.parse("event", event, "event", MODEL), **values}
    PROGRAM.check(with_defaults(PROGRAM, given), Setting(n=n or width, max_tokens=toy.max_tokens, model=MODEL))
    return decode(
        PROGRAM,
        toy.law,
        n=n or width,
        max_tokens=toy.max_tokens,
        ending_ids=[0],
        values=given,
        prompt=PROMPT,
        model=MODEL,
    )


def beam(toy: Toy, width: int, **values: Any) -> Outcome:
    given = {"beam_width": width, "length_penalty": 0.0, **values}
    return decode(Beam(), toy.law, n=width, max_tokens=toy.max_tokens, ending_ids=[0], values=given)


class Oracle:
    """Says the exact probability, or what it has been told to say."""

    name = "oracle"

    def __init__(self) -> None:
        self.says: Callable[[Ids, bool], float] = lambda ids, ended: 1.0
        self.batches: list[Sequence[Text]] = []

    def probabilities(self, prompt_ids: Sequence[int], texts: Sequence[Text]) -> list[float]:
        assert tuple(prompt_ids) == PROMPT
        self.batches.append(texts)
        return [self.says(tuple(text.ids), text.end is not None) for text in texts]


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    one = Oracle()
    CLASSIFIERS.register(one)
    yield one
    del CLASSIFIERS._items[one.name]


def knowing(toy: Toy, v: Callable[[Ids], float]) -> Callable[[Ids, bool], float]:
    """What an oracle says that knows `v`. Texts come to it without the ending id."""
    return lambda ids, ended: min(1.0, v((*ids, 0) if ended and len(ids) < toy.max_tokens else ids))


JUDGED = {"classifier": {"id": "oracle"}}


@pytest.mark.parametrize("lookahead", ["live", "none"])
@pytest.mark.parametrize("event, holds", EVENTS, ids=ids_of_events)
def test_a_search_that_loses_nothing_lists_the_event_in_order(
    event: dict[str, Any], holds: Callable[[Ids], bool], lookahead: str
) -> None:
    for seed in SEEDS:
        toy = Toy(seed)
        wanted = sorted(filter(holds, toy.texts()), key=lambda ids: -toy.logp(ids))
        outcome = run(toy, event, ALL, lookahead=lookahead)
        assert outcome.texts == wanted
        assert all(choice.details["event"] is True for choice in outcome.choices.values())


@pytest.mark.parametrize("event, holds", EVENTS, ids=ids_of_events)
@pytest.mark.parametrize("width", [1, 2, 4])
def test_every_output_is_one_the_event_holds_for(
    event: dict[str, Any], holds: Callable[[Ids], bool], width: int
) -> None:
    reached = 0
    for seed in SEEDS:
        try:
            outcome = run(Toy(seed, vocab=4, max_tokens=6, ending_bias=1), event, width)
        except ProgramError as error:
            assert error.code == "event_not_reached"
        else:
            reached += 1
            assert outcome.texts and all(map(holds, outcome.texts))
    assert reached > len(SEEDS) / 2


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("lookahead", ["live", "classifier", "none"])
def test_an_event_that_always_holds_leaves_beam_search(oracle: Oracle, lookahead: str, alpha: float) -> None:
    for seed in SEEDS:
        toy = Toy(seed, vocab=4, max_tokens=6, ending_bias=1)
        for stop in ("bound", "first"):
            values = {"length_penalty": alpha, "stop": stop}
            outcome = run(toy, {"min_len": 0, **JUDGED}, 3, lookahead=lookahead, **values)
            plain = beam(toy, 3, **values)
            assert outcome.texts == plain.texts and outcome.passes == plain.passes


@pytest.mark.parametrize("event, holds", EVENTS, ids=ids_of_events)
def test_without_lookahead_it_is_beam_search_and_a_filter(event: dict[str, Any], holds: Callable[[Ids], bool]) -> None:
    for seed in SEEDS:
        toy = Toy(seed, vocab=4, max_tokens=6, ending_bias=1)
        plain = beam(toy, 3).texts
        kept = list(filter(holds, plain))
        relaxed = run(toy, event, 3, lookahead="none", beta=0, relax=True)
        assert relaxed.texts == (kept or plain)
        assert all(choice.details["event"] is bool(kept) for choice in relaxed.choices.values())


@pytest.mark.parametrize("event, holds", EVENTS, ids=ids_of_events)
def test_live_lookahead_is_that_of_the_reference(event: dict[str, Any], holds: Callable[[Ids], bool]) -> None:
    """Which keeps what can still come to hold, by enumeration."""
    for seed in SEEDS:
        toy = Toy(seed, max_tokens=5)
        v = exact_v(toy, holds)
        for width in (1, 2, 4):
            outcome = run(toy, event, width, relax=True)
            found = beam_search(toy, width, 0.0, admits=lambda ids, v=v: v(ids) > 0)
            assert outcome.texts == (found or beam_search(toy, width, 0.0))


@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("event, holds", EVENTS[:6], ids=ids_of_events[:6])
def test_a_classifier_steers_as_in_the_reference(
    oracle: Oracle, event: dict[str, Any], holds: Callable[[Ids], bool], beta: float
) -> None:
    """The event is the classifier's alone, which knows P(event | prefix): nothing is pruned but by its word."""
    for seed in SEEDS:
        toy = Toy(seed, vocab=4, max_tokens=4)
        v = exact_v(toy, holds)
        oracle.says = lambda ids, ended, v=v, toy=toy: min(
            1, v((*ids, 0) if ended and len(ids) < toy.max_tokens else ids)
        )

        def bonus(ids: Ids, v: Callable[[Ids], float] = v) -> float:
            return beta * math.log(max(v(ids), 1e-6))

        for width in (2, 3):
            outcome = run(toy, JUDGED, width, lookahead="classifier", beta=beta, relax=True)
            texts = beam_search(toy, width, 0.0, bonus=bonus, judges=lambda ids: holds(ids))
            assert outcome.texts == (texts or beam_search(toy, width, 0.0))


@pytest.mark.parametrize("event, holds", EVENTS, ids=ids_of_events)
def test_with_the_exact_probability_ranks_are_those_of_the_conditional_law(
    event: dict[str, Any], holds: Callable[[Ids], bool]
) -> None:
    """p(x_t | x_<t, E) = p(x_t | x_<t) v(x_<=t) / v(x_<t): the product over an output is p(x) 1[E] / v()."""
    for seed in SEEDS:
        toy = Toy(seed)
        v = exact_v(toy, holds)
        total = 0.0
        for ids in filter(holds, toy.texts()):
            steps = [ids[:at] for at in range(len(ids) + 1)]
            total += math.prod(
                math.exp(toy.logp(after) - toy.logp(before)) * v(after) / v(before) for before, after in pairwise(steps)
            )
        assert total == pytest.approx(1)


def test_steering_finds_what_probability_alone_loses(oracle: Oracle) -> None:
    """Narrow searches, with and without a look ahead."""
    found = {"live": 0, "classifier": 0}
    for seed in range(20):
        toy = Toy(seed, vocab=4, max_tokens=5, ending_bias=-2)

        def holds(ids: Ids) -> bool:
            return text(ids).count(1) >= 3

        v = exact_v(toy, holds)
        oracle.says = lambda ids, ended, toy=toy, v=v: min(
            1, v((*ids, 0) if ended and len(ids) < toy.max_tokens else ids)
        )
        for lookahead in found:
            try:
                assert all(map(holds, run(toy, JUDGED, 2, lookahead=lookahead).texts))
                found[lookahead] += 1
            except ProgramError:
                pass
    assert found["classifier"] == 20 > found["live"]


def test_a_wrong_zero_does_not_make_the_search_incomplete(oracle: Oracle) -> None:
    oracle.says = lambda ids, ended: float(ended)
    for seed in SEEDS:
        toy = Toy(seed)
        outcome = run(toy, JUDGED, ALL, lookahead="classifier")
        assert outcome.texts == sorted(toy.texts(), key=lambda ids: -toy.logp(ids))


def test_below_a_millionth_probabilities_are_all_the_same(oracle: Oracle) -> None:
    for seed in SEEDS:
        toy, texts = Toy(seed, vocab=4, max_tokens=6), []
        for exponent in (lambda ids: 7 + ids[-1], lambda ids: 6):
            oracle.says = lambda ids, ended, exponent=exponent: 1.0 if ended else 10.0 ** -exponent(ids)
            texts.append(run(toy, JUDGED, 2, lookahead="classifier").texts)
        assert texts[0] == texts[1]


def test_a_classifier_is_asked_once_a_step_about_2w_texts_at_most(oracle: Oracle) -> None:
    outcome = run(Toy(1, vocab=5, max_tokens=6, ending_bias=-1), JUDGED, 3, lookahead="classifier")
    assert len(oracle.batches) == outcome.passes + 1  # and once about what was found
    assert max(map(len, oracle.batches)) <= 6
    assert all(text.end is not None for text in oracle.batches[-1])


def test_live_lookahead_asks_a_classifier_about_finished_texts_only(oracle: Oracle) -> None:
    oracle.says = lambda ids, ended: float(len(ids) >= 2)
    toy = Toy(4)
    outcome = run(toy, JUDGED, ALL)
    assert outcome.texts == sorted((ids for ids in toy.texts() if len(text(ids)) >= 2), key=lambda ids: -toy.logp(ids))
    assert all(text.end is not None for batch in oracle.batches for text in batch)


def test_a_classifier_that_says_nan_is_an_error(oracle: Oracle) -> None:
    oracle.says = lambda ids, ended: math.nan
    with pytest.raises(ValueError, match="oracle"):
        run(Toy(0), JUDGED, 2, lookahead="classifier")


def test_a_mode_that_is_empty_gives_way_to_the_best_text_that_is_not() -> None:
    toy = Toy(3, ending_bias=2.5)
    assert beam(toy, ALL).texts[0] == (0,)
    best = max((ids for ids in toy.texts() if ids != (0,)), key=toy.logp)
    assert run(toy, {"min_len": 1}, ALL, 1).texts == [best]
    assert run(toy, {"regex_not": "^$"}, ALL, 1).texts == [best]


def test_a_length_that_has_to_end_ends_however_unlikely_the_end() -> None:
    toy = Toy(1, vocab=40, max_tokens=6, ending_bias=-30)
    assert all(ids[-1] == 0 and len(ids) <= 3 for ids in run(toy, {"max_len": 2}, 2).texts)


def test_a_text_that_has_to_finish_finishes_however_unlikely_the_end() -> None:
    toy = Toy(1, vocab=40, max_tokens=3, ending_bias=-30)
    assert [(len(ids), ids[-1]) for ids in run(toy, {"finished": True, "min_len": 2}, 2).texts] == [(3, 0), (3, 0)]


def test_an_expression_that_the_most_probable_tokens_match_is_stepped_around() -> None:
    """What is looked at first of a row is all refused."""
    letters = 40
    pieces = [b"", *(b"%c" % (97 + at % 26) if at else b"z" for at in range(letters))]
    model = ModelFacts(pieces=pieces, special_ids=frozenset({0}))
    logits = [-50.0, *(-0.1 * at for at in range(letters))]
    outcome = decode(
        PROGRAM,
        lambda output: logits,
        n=1,
        max_tokens=3,
        ending_ids=[0],
        values={"beam_width": 1, "event": {"regex_not": "[b-z]"}},
        model=model,
    )
    assert outcome.texts == [(27, 27, 27)]  # the only a


def test_nothing_that_satisfies_the_event() -> None:
    toy = Toy(1, ending_bias=-math.inf)
    event = {"finished": True}
    for lookahead in ("live", "none"):
        with pytest.raises(ProgramError) as error:
            run(toy, event, 2, lookahead=lookahead)
        assert error.value.code == "event_not_reached"
        outcome = run(toy, event, 2, lookahead=lookahead, relax=True)
        assert outcome.texts == beam(toy, 2).texts
        assert [choice.details["event"] for choice in outcome.choices.values()] == [False, False]


@pytest.mark.parametrize(
    "values, setting, param",
    [
        ({}, Setting(n=1, max_tokens=4), "event"),
        ({"event": {"min_len": 5}}, Setting(n=1, max_tokens=4), "event"),
        ({"event": {"min_len": 1}, "beam_width": 2}, Setting(n=3, max_tokens=4), "beam_width"),
        ({"event": {"min_len": 1}, "lookahead": "classifier"}, Setting(n=1, max_tokens=4), "lookahead"),
        ({"event": {"min_len": 1}}, Setting(n=1, max_tokens=4, temperature=0), "temperature"),
        ({"event": {"min_len": 1}}, Setting(n=1, max_tokens=4, draw="arithmetic"), "draw"),
    ],
)
def test_what_cannot_be_done_is_refused(values: dict[str, Any], setting: Setting, param: str) -> None:
    with pytest.raises(SamplerError) as error:
        PROGRAM.check(with_defaults(PROGRAM, values), setting)
    assert error.value.param == param
