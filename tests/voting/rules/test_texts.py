"""Rules that read what samples say: counting, stated confidence, complexity."""

from __future__ import annotations

import time

import pytest

from tests.voting.votes import sample, samples_of, shares, vote, weights
from voting.contract import VOTING_RULES
from voting.rules.complexity import steps
from voting.rules.verbalised import stated

# --- self-consistency


def test_counting() -> None:
    outcome = vote("sc", samples_of(*((answer, 0.5) for answer in "abacaa")))
    assert weights(outcome) == {"a": 4, "b": 1, "c": 1}
    assert outcome.confidence == 4 / 6


@pytest.mark.parametrize("answers", ["ab", "aab", "abcabca", "aaaa"])
def test_a_vote_for_the_leader_keeps_it_there(answers: str) -> None:
    for count in range(4):
        pairs = [(answer, 0.5) for answer in answers + answers[0] * count]
        outcome = vote("sc", samples_of(*pairs))
        assert outcome.answer == answers[0]
        assert (outcome.confidence or 0) * len(pairs) == pytest.approx(answers.count(answers[0]) + count)


# --- verbalised confidence


@pytest.mark.parametrize(
    ("text", "confidence"),
    [
        ("Confidence: 85", 0.85),
        ("so 4.\nconfidence: 85%", 0.85),
        ("**Confidence:** 85 %.", 0.85),
        ("CONFIDENCE = 85/100", 0.85),
        ("Confidence: 85 / 100", 0.85),
        ("Confidence: 72.5", 0.725),
        ("Confidence: +7", 0.07),
        ("Confidence: 0", 0.0),
        ("Confidence: 100, since 2 + 2 = 4", 1.0),
        ("Confidence: 10\nno, wait\nConfidence: 90", 0.9),
        ("Confidence: 10. Confidence: high", 0.1),
        ("Confidence: 0.5", 0.005),
        ("Confidence: 101", None),
        ("Confidence: 90\nConfidence: 101", None),
        ("Confidence: -1", None),
        ("Confidence: 100.01", None),
        ("Confidence: 85/90", None),
        ("Confidence: 8.5.2", None),
        ("Confidence: 1,000", None),
        ("Confidence: high", None),
        ("Confidence: nan", None),
        ("Confidence: " + "9" * 400, None),
        ("overconfidence: 85", None),
        ("my confidence is 85", None),
        ("85", None),
        ("", None),
    ],
)
def test_what_a_text_states(text: str, confidence: float | None) -> None:
    assert stated(text) == confidence


@pytest.mark.parametrize(
    "text", ["confidence" + " " * 50_000, "confidence: " + "9" * 50_000 + "/", "confidence:" * 9_000]
)
def test_hostile_texts_are_read_quickly(text: str) -> None:
    started = time.monotonic()
    stated(text)
    assert time.monotonic() - started < 2


def said(*pairs: tuple[str, int]) -> list:
    return [sample(i, answer, text=f"{answer}\nConfidence: {percent}") for i, (answer, percent) in enumerate(pairs)]


def test_stated_confidence_is_added_or_averaged() -> None:
    samples = said(("a", 30), ("a", 30), ("b", 50), ("a", 0))
    summed, averaged = vote("verbalised", samples), vote("verbalised", samples, aggregate="mean")
    assert weights(summed) == {"a": pytest.approx(0.6), "b": 0.5}
    assert weights(averaged) == {"a": pytest.approx(0.2), "b": 0.5}
    assert (summed.answer, averaged.answer) == ("a", "b")
    assert shares(averaged) == {"a": pytest.approx(2 / 7), "b": pytest.approx(5 / 7)}


def test_the_instruction_shows_the_form_that_is_read() -> None:
    rule = VOTING_RULES.get("verbalised")
    assert stated(rule.instruction) == 0.5
    assert all(not other.instruction for other in VOTING_RULES if other is not rule)
    assert rule.answer_text("It is 4.\nConfidence: 85%") == "It is 4.\n"
    assert VOTING_RULES.get("sc").answer_text("Confidence: 85%") == "Confidence: 85%"


# --- complexity


@pytest.mark.parametrize(
    ("text", "line", "sentence", "semicolon"),
    [
        ("", 0, 0, 0),
        ("one", 1, 1, 1),
        ("one\n\n  \ntwo. Three!\n", 2, 3, 1),
        ("a; b;; c\nd", 2, 2, 3),
        ("pi is 3.14. Done", 1, 2, 1),
    ],
)
def test_steps(text: str, line: int, sentence: int, semicolon: int) -> None:
    assert [steps(text, unit) for unit in ("line", "sentence", "semicolon")] == [line, sentence, semicolon]


def complex_votes(*lengths: int, answers: str) -> list:
    return [sample(i, answers[i], text="step\n" * length) for i, length in enumerate(lengths)]


def test_the_most_complex_vote() -> None:
    samples = complex_votes(1, 5, 1, 4, 1, answers="ababa")
    outcome = vote("complexity", samples, keep=0.4)
    assert (outcome.answer, outcome.confidence, outcome.baseline) == ("b", 1.0, ("a", 0.6))
    assert outcome.tally.pruned == dict.fromkeys((0, 2, 4), "few_steps")
    assert outcome.report()["details"] == {"fewest_steps": 4, "tied_at_cut": False}


def test_ties_at_the_cut_keep_the_lower_index() -> None:
    outcome = vote("complexity", complex_votes(3, 2, 2, 2, answers="abcd"), keep=0.5)
    assert set(outcome.tally.pruned) == {2, 3}
    assert outcome.report()["details"] == {"fewest_steps": 2, "tied_at_cut": True}


@pytest.mark.parametrize(
    ("count", "keep", "kept"),
    [
        (50, 0.8, 40),
        (10, 0.7, 7),
        (10, 0.1, 1),
        (10, 0.11, 2),
        (3, 0.8, 3),
        (10, 1e-12, 1),
        (7, 1.0, 7),
        (100, 0.07, 7),
    ],
)
def test_how_many_are_kept(count: int, keep: float, kept: int) -> None:
    outcome = vote("complexity", complex_votes(*range(count), answers="a" * count), keep=keep)
    assert count - len(outcome.tally.pruned) == kept


def test_keeping_all_is_counting() -> None:
    samples = complex_votes(3, 1, 4, 1, 5, answers="abbab")
    assert weights(vote("complexity", samples, keep=1.0)) == weights(vote("sc", samples))
