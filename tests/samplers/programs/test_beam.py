"""Beam search against enumeration, greedy decoding and a slow reference; diverse beam search against the reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from samplers.contract import SamplerError
from samplers.model_facts import ModelFacts
from samplers.programs.beam import Beam
from samplers.programs.beam_search import Terms
from samplers.programs.branch import Branch
from samplers.programs.contract import Setting
from samplers.testing.program_world import Outcome, decode, with_defaults
from tests.samplers.programs.beam_reference import Ids, Toy, beam_search, score

PROGRAM = Beam()
ALPHAS = [-1.0, 0.0, 0.5, 1.0, 2.0]
SEEDS = range(8)
ALL = 32  # beams enough for every prefix of the toy model to be kept with all that can follow


def run(toy: Toy, width: int, n: int | None = None, **values: Any) -> Outcome:
    values = {"beam_width": width, **values}
    return decode(PROGRAM, toy.law, n=n or width, max_tokens=toy.max_tokens, ending_ids=[0], values=values)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_beam_that_stops_first_is_greedy_decoding(seed: int) -> None:
    toy = Toy(seed, vocab=5, max_tokens=8, ending_bias=0.5)
    greedy: Ids = ()
    while not greedy or not toy.ended(greedy):
        greedy += (int(np.argmax(toy.law(greedy))),)
    assert run(toy, 1, stop="first").texts == [greedy]


def test_greedy_decoding_where_log_probabilities_round_together() -> None:
    """Two logits that differ by less than their log-probabilities can show."""
    logits = [-5.0, 1e-8, 2e-8]
    assert run_law(lambda _: logits, width=1, max_tokens=3, stop="first").texts == [(2, 2, 2)]


def run_law(law: Any, *, width: int, max_tokens: int, n: int | None = None, **values: Any) -> Outcome:
    given = {key: values.pop(key) for key in ("stages", "stops", "model") if key in values}
    values = {"beam_width": width, **values}
    return decode(PROGRAM, law, n=n or width, max_tokens=max_tokens, ending_ids=[0], values=values, **given)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_beam_that_loses_nothing_lists_all_texts_in_order(seed: int, alpha: float) -> None:
    toy = Toy(seed)
    texts = sorted(toy.texts(), key=lambda ids: -score(toy, ids, alpha))
    assert len(texts) == 31
    outcome = run(toy, ALL, length_penalty=alpha)
    assert outcome.texts == texts
    for n in (1, 7):
        assert run(toy, ALL, n, length_penalty=alpha).texts == texts[:n]
    for choice, ids in zip(outcome.choices.values(), texts, strict=True):
        assert choice.details["beam_score"] == pytest.approx(score(toy, ids, alpha), abs=1e-5)
        assert choice.details["logprob"] == pytest.approx(toy.logp(ids), abs=1e-5)
        assert choice.end is not None and choice.end.reason == ("stop" if ids[-1] == 0 else "length")


@pytest.mark.parametrize("width", [16, 20, 31])
@pytest.mark.parametrize("seed", SEEDS)
def test_as_many_beams_as_prefixes_find_the_mode(seed: int, width: int) -> None:
    toy = Toy(seed, ending_bias=-1)
    assert run(toy, width, 1, length_penalty=0).texts == [max(toy.texts(), key=toy.logp)]


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_the_bound_is_safe(width: int, alpha: float) -> None:
    """Texts are those of a search that never stops early."""
    for seed in SEEDS:
        toy = Toy(seed, vocab=4, max_tokens=6, ending_bias=1)
        outcome = run(toy, width, length_penalty=alpha)
        assert outcome.texts == beam_search(toy, width, alpha)
        scores = [choice.details["beam_score"] for _, choice in sorted(outcome.choices.items())]
        assert scores == sorted(scores, reverse=True)
        assert len(set(outcome.texts)) == len(outcome.texts)


@pytest.mark.parametrize("alpha", [-5.0, *ALPHAS, 5.0])
def test_no_text_that_goes_on_comes_to_more_than_the_bound(alpha: float) -> None:
    terms = Terms(4, alpha, first=False)
    for length in range(1, 9):
        scores = [terms.score(-2.5, ended) for ended in range(length + 1, 10)]
        assert terms.reach(-2.5, length, longest=9) == max(scores)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5])
def test_the_bound_stops_early(alpha: float) -> None:
    toys = [Toy(seed, vocab=4, max_tokens=6, ending_bias=1) for seed in SEEDS]
    assert min(run(toy, 2, length_penalty=alpha).passes for toy in toys) < 6


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_first_stops_as_soon_as_there_are_enough(seed: int, width: int) -> None:
    toy = Toy(seed, vocab=4, max_tokens=6, ending_bias=1)
    outcome = run(toy, width, stop="first")
    assert outcome.texts == beam_search(toy, width, 1.0, stop="first")
    assert outcome.passes <= run(toy, width).passes


def test_first_can_be_worse_than_the_bound() -> None:
    worse = 0
    for seed in range(40):
        toy = Toy(seed, vocab=4, max_tokens=6, ending_bias=1)
        first, bound = (run(toy, 2, 1, stop=stop).choices[0].details["beam_score"] for stop in ("first", "bound"))
        assert first <= bound
        worse += first < bound
    assert worse


def test_ties_go_to_the_higher_beam_then_to_the_lower_id() -> None:
    outcome = run_law(lambda _: [-9.0, 0.0, 0.0, 0.0], width=2, max_tokens=2)
    assert outcome.texts == [(1, 1), (1, 2)]
    outcome = run_law(lambda _: [-9.0] + [0.0] * 49, width=8, max_tokens=3)
    assert outcome.texts == [(1, 1, token) for token in range(1, 9)]


def test_the_empty_text_can_be_the_mode() -> None:
    toy = Toy(3, vocab=4, max_tokens=6, ending_bias=2.5)
    assert run(toy, 64, 1, length_penalty=0).texts == [(0,)]


@pytest.mark.parametrize("width", [1, 3, 8])
def test_the_first_child_continues_its_branch(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(5, vocab=4, max_tokens=6, ending_bias=-9)
    forks: list[Branch] = []
    fork = Branch.fork

    def counted(branch: Branch, ordinal: int = 0) -> Branch:
        forks.append(branch)
        return fork(branch, ordinal)

    monkeypatch.setattr(Branch, "fork", counted)
    outcome = run(toy, width)
    assert max(outcome.live) <= width  # nothing is kept that does not go on
    assert outcome.computed == sum(outcome.live[1:])  # each beam one token a step, and nothing twice
    children = [sum(forked is branch for forked in forks) for branch in set(forks)]
    assert (width == 1) == (not children)


def test_scores_are_of_the_shaped_rows_and_logprobs_of_the_raw_ones() -> None:
    toy = Toy(1)
    bias = np.array([0.0, 3.0, -1.0])
    outcome = run_law(toy.law, width=4, max_tokens=4, n=1, length_penalty=0, stages=lambda _, row: row + bias)
    (choice,) = outcome.choices.values()
    logq = 0.0
    for at, token in enumerate(choice.ids):
        row = np.array(toy.law(choice.ids[:at])) + bias
        logq += row[token] - np.logaddexp.reduce(row)
    assert choice.details["beam_score"] == pytest.approx(logq, abs=1e-5)
    assert choice.details["logprob"] == pytest.approx(toy.logp(choice.ids), abs=1e-5)


def test_masks_leave_fewer_texts_or_none() -> None:
    toy = Toy(1)
    stages = {"two": lambda _, row: [row[0], row[1], -math.inf], "none": lambda _, row: [-math.inf] * 3}
    only = run_law(toy.law, width=8, max_tokens=2, stages=stages["two"])
    assert sorted(only.texts) == [(0,), (1, 0), (1, 1)]
    assert run_law(toy.law, width=8, max_tokens=2, stages=stages["none"]).choices == {}


def test_a_stop_string_ends_a_text_as_an_ending_id_does() -> None:
    model = ModelFacts(pieces=[b"", b"a", b"b"])
    outcome = run_law(lambda _: [-9.0, 1.0, 0.0], width=8, max_tokens=3, length_penalty=0, stops=[b"ab"], model=model)
    ends = {choice.ids: choice.end.reason for choice in outcome.choices.values() if choice.end is not None}
    assert ends[1, 2] == "stop" and ends[1, 1, 2] == "stop" and ends[1, 1, 1] == "length"
    assert not any(ids[:2] == (1, 2) and len(ids) > 2 for ids in ends)


@pytest.mark.parametrize("groups, width", [(2, 4), (2, 6), (4, 4), (3, 6)])
@pytest.mark.parametrize("diversity", [0.0, 0.3, 1.0, 100.0])
@pytest.mark.parametrize("stop", ["bound", "first"])
def test_diverse_beam_search_is_that_of_the_reference(groups: int, width: int, diversity: float, stop: str) -> None:
    for seed in SEEDS:
        toy = Toy(seed, vocab=5, max_tokens=5, ending_bias=0.5)
        outcome = run(toy, width, groups=groups, diversity=diversity, stop=stop)
        assert outcome.texts == beam_search(toy, width, 1.0, stop=stop, groups=groups, diversity=diversity)
        if diversity == 0:
            assert outcome.texts == run(toy, width // groups, stop=stop).texts


def test_strong_diversity_makes_groups_begin_differently() -> None:
    toy = Toy(2, vocab=6, max_tokens=3, ending_bias=-20)
    outcome = run(toy, 4, groups=4, diversity=100)
    assert len({ids[0] for ids in outcome.texts}) == 4
    assert len({ids[0] for ids in run(toy, 4, groups=4, diversity=0.0).texts}) == 1


def test_one_group_is_plain_whatever_the_diversity() -> None:
    toy = Toy(2, vocab=4, max_tokens=5)
    assert run(toy, 4, diversity=100.0).texts == run(toy, 4).texts == beam_search(toy, 4, 1.0)


@pytest.mark.parametrize(
    "values, setting, param",
    [
        ({"beam_width": 4}, Setting(n=5, max_tokens=4), "beam_width"),
        ({"beam_width": 4, "groups": 3}, Setting(n=1, max_tokens=4), "groups"),
        ({"beam_width": 4, "groups": 8}, Setting(n=1, max_tokens=4), "groups"),
        ({}, Setting(n=1, max_tokens=4, temperature=0.7), "temperature"),
        ({}, Setting(n=1, max_tokens=4, draw="gumbel"), "draw"),
    ],
)
def test_what_cannot_be_done_is_refused(values: dict[str, Any], setting: Setting, param: str) -> None:
    with pytest.raises(SamplerError) as error:
        PROGRAM.check(with_defaults(PROGRAM, values), setting)
    assert error.value.param == param


def test_defaults_are_accepted_for_as_many_choices_as_beams() -> None:
    PROGRAM.check(with_defaults(PROGRAM, {}), Setting(n=4, max_tokens=4))
