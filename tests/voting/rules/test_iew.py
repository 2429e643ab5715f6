"""Inverse-entropy voting: weights, the cap, and the chain of attempts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.voting.votes import sample, shares, vote, weights
from voting.chain import INSTRUCTION, Chain, Turn
from voting.contract import Sample


def votes(*pairs: tuple[str, float]) -> list[Sample]:
    """(answer, mean entropy)"""
    return [sample(i, answer, entropies=(0.5 * h, 1.5 * h)) for i, (answer, h) in enumerate(pairs)]


def test_weights_are_inverse_mean_entropies() -> None:
    outcome = vote("iew", votes(("a", 0.5), ("b", 0.25), ("a", 1.0)))
    assert weights(outcome) == {"a": pytest.approx(3.0), "b": pytest.approx(4.0)}
    assert (outcome.answer, outcome.baseline) == ("b", ("a", 2 / 3))
    assert outcome.report()["details"] == {"capped": [], "topk": 20, "renormalised": True}


@pytest.mark.parametrize("h", [0.0, 1e-12, 0.3, 3.0])
def test_equal_entropies_are_the_majority(h: float) -> None:
    samples = votes(*((answer, h) for answer in "aabca"))
    assert shares(vote("iew", samples)) == pytest.approx(shares(vote("sc", samples)))
    assert all(math.isfinite(weight) for weight in weights(vote("iew", samples)).values())


@pytest.mark.parametrize("seed", range(5))
def test_the_base_of_the_logarithm_is_irrelevant(seed: int) -> None:
    noise = np.random.default_rng(seed)
    pairs = [(str(noise.choice(list("abc"))), float(noise.uniform(0.01, 2))) for _ in range(12)]
    bits = [(answer, h / math.log(2)) for answer, h in pairs]
    one, other = vote("iew", votes(*pairs)), vote("iew", votes(*bits))
    assert one.answer == other.answer and shares(one) == pytest.approx(shares(other))


def test_one_path_does_not_decide_alone() -> None:
    samples = votes(("a", 0.0), *[("b", 1.0)] * 12)
    outcome = vote("iew", samples)
    assert weights(outcome) == {"a": pytest.approx(10.0), "b": pytest.approx(12.0)}
    assert (outcome.answer, outcome.report()["details"]["capped"]) == ("b", [0])
    assert vote("iew", samples, max_ratio=1e12).answer == "a"


@pytest.mark.parametrize(("h", "capped"), [(0.1001, []), (0.0999, [0])])
def test_the_cap_is_a_multiple_of_the_median(h: float, capped: list[int]) -> None:
    outcome = vote("iew", votes(("a", h), ("b", 1.0), ("b", 2.0), ("b", 1.0)))
    assert outcome.report()["details"]["capped"] == capped


def test_what_is_at_the_cap_is_not_capped() -> None:
    assert vote("iew", votes(("a", 0.5), ("b", 0.5)), max_ratio=1).report()["details"]["capped"] == []


def test_a_path_without_tokens_abstains() -> None:
    outcome = vote("iew", [sample(0, "a", entropies=()), sample(1, "b")])
    assert (outcome.answer, outcome.samples[0].abstain_reason) == ("b", "no_tokens")


# --- chains


@pytest.mark.parametrize("history", ["last", "all"])
def test_what_the_next_attempt_sees(history: str) -> None:
    chain = Chain(3, history)
    assert chain.turns() == [] and chain.prompt("Q") == "Q"
    chain.add("one")
    assert chain.turns() == [Turn("assistant", "one"), Turn("user", INSTRUCTION)]
    assert chain.prompt("Q") == f"Q\n\none\n\n{INSTRUCTION}\n\n"
    chain.add("two")
    seen = [turn.content for turn in chain.turns() if turn.role == "assistant"]
    assert seen == (["two"] if history == "last" else ["one", "two"])
    chain.add("three")
    assert chain.done and not chain.truncated
    with pytest.raises(ValueError, match="complete"):
        chain.add("four")
    chain.stop()
    assert not chain.truncated  # it was complete already


def test_a_full_context_ends_a_chain() -> None:
    chain = Chain(3)
    chain.add("one")
    chain.stop()
    assert chain.done and chain.truncated and chain.attempts == ["one"]
    with pytest.raises(ValueError, match="complete"):
        chain.add("two")
