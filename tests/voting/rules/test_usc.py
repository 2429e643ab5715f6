"""A judge picks: its question, what its reply means, and what happens where it means nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.voting.votes import sample, samples_of, vote
from voting.contract import VOTING_RULES, Sample
from voting.judge import Question, chosen, question
from voting.rule import read_values
from voting.rules.usc import UniversalSelfConsistency

RULE = UniversalSelfConsistency()


def values(**params: Any) -> dict[str, Any]:
    return read_values(RULE, params, 8)


def ask(samples: list[Sample], seed: int = 0, **params: Any) -> Question:
    asked = RULE.ask("What is it?", samples, values(**params), seed)
    assert asked is not None
    return asked


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("The most consistent response is Response 2", 2),
        ("The most consistent response is 3.", 3),
        ("Response 1 is wrong; response #3 is best", 3),
        ("RESPONSE **2**", 2),
        ("Response 2, because 3 of them agree", 2),
        ("Response 9 or maybe response 1", 1),
        ("Response 9, I mean 3", 3),
        ("number 2", 2),
        ("1, no, 3", 3),
        ("responses 1 and 2 agree", 2),
        ("2.5 of them say 1", 1),
        ("Response 0", None),
        ("Response 4", None),
        ("Response 2.5", None),
        ("Response " + "1" * 5000, None),
        ("none", None),
        ("", None),
    ],
)
def test_what_a_reply_means(reply: str, number: int | None) -> None:
    assert chosen(reply, (30, 10, 20)) == (None if number is None else (30, 10, 20)[number - 1])


def test_the_question_numbers_the_responses() -> None:
    samples = [sample(i, "a", text=f"text {i}") for i in range(4)]
    asked = ask(samples, shuffle=False)
    assert asked.order == (0, 1, 2, 3)
    places = [asked.prompt.index(f"Response {i + 1}:\ntext {i}") for i in range(4)]
    assert places == sorted(places) and "What is it?" in asked.prompt
    shuffled = ask(samples)
    for number, index in enumerate(shuffled.order, 1):
        assert f"Response {number}:\ntext {index}" in shuffled.prompt


def test_the_order_follows_from_the_seed() -> None:
    samples = samples_of(*[("a", 0.5)] * 8)
    orders = {seed: ask(samples, seed).order for seed in range(20)}
    assert orders == {seed: ask(samples, seed).order for seed in range(20)}
    assert len(set(orders.values())) == 20
    assert all(sorted(order) == list(range(8)) for order in orders.values())


def test_every_order_is_equally_likely() -> None:
    samples = samples_of(*[("a", 0.5)] * 3)
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(6000):
        order = ask(samples, seed).order
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6 and all(abs(count - 1000) < 165 for count in counts.values())  # 5.7 sigma


def test_the_judges_choice_wins() -> None:
    samples = samples_of(("a", 0.9), ("a", 0.9), ("b", 0.1), ("a", 0.9))
    asked = ask(samples, seed=3)
    voted = RULE.answer(samples, asked, f"The most consistent response is Response {asked.order.index(2) + 1}")
    outcome = vote("usc", voted)
    assert (outcome.answer, outcome.representative, outcome.confidence, outcome.fallback) == ("b", 2, None, None)
    assert outcome.baseline == ("a", 0.75)
    assert outcome.shares == (None, None) and not outcome.tie
    assert [record["weight"] for record in outcome.records()] == [0, 0, 1, 0]


def test_an_unclear_reply_is_decided_by_counting_or_by_the_first() -> None:
    samples = [sample(0, None), *samples_of(("-", 0.1), ("a", 0.1), ("b", 0.9), ("b", 0.9))[1:]]
    voted = RULE.answer(samples, ask(samples), "I cannot say")
    counted = vote("usc", voted)
    assert (counted.answer, counted.confidence, counted.fallback) == ("b", pytest.approx(2 / 3), "usc_parse")
    first = vote("usc", voted, unclear="first")
    assert (first.answer, first.confidence, first.fallback) == ("a", None, "usc_parse")
    assert vote("usc", samples).fallback == "usc_parse"  # nobody was asked


def test_nothing_to_ask() -> None:
    samples = [sample(0, None), sample(1, "a")]
    assert RULE.ask("?", samples, values(), 0) is None
    assert RULE.ask("?", samples[:1], values(), 0) is None
    assert (vote("usc", samples).answer, vote("usc", samples).fallback) == ("a", None)
    with pytest.raises(ValueError, match="nothing"):
        question("?", [], None)


def test_those_without_an_answer_are_shown_only_if_they_are_to_be() -> None:
    samples = [sample(0, None), sample(1, "a"), sample(2, "b")]
    assert set(ask(samples).order) == {1, 2}
    asked = ask(samples, drop_abstain=False, shuffle=False)
    assert asked.order == (0, 1, 2)
    outcome = vote("usc", RULE.answer(samples, asked, "Response 1"), drop_abstain=False)
    assert (outcome.answer, outcome.winner, outcome.representative) == (None, None, 0)


def test_a_vote_of_eight_unless_told_otherwise() -> None:
    assert {rule.name: rule.default_samples for rule in VOTING_RULES if rule.default_samples != 16} == {"usc": 8}
