"""Whether thinking is worth it: what becomes of throughput in simulated steps."""

from __future__ import annotations

import numpy as np
import pytest

from spec_decode.worth import BLOCK, EVERY, FEW, Worth


def run(
    worth: Worth, steps: int, requests: int, thinking: tuple[float, float], seed: int = 0, slower: float = 1.0
) -> float:
    """Tokens per second relative to steps without thinking, which give a token per request in a second.

    thinking: (tokens per request, seconds) of a step with it; slower: the machine, so many times.
    """
    rng = np.random.default_rng(seed)
    tokens = seconds = 0.0
    for _ in range(steps):
        thought = worth.thinks(requests)
        each, took = thinking if thought else (1.0, 1.0)
        given, took = requests * each * rng.uniform(0.5, 1.5), took * rng.uniform(0.8, 1.2)
        worth.observe(requests, thought, round(given), slower * took)
        tokens, seconds = tokens + given, seconds + took
    return tokens / seconds / requests


@pytest.mark.parametrize("requests", [4, 16])
def test_what_does_not_pay_is_hardly_done(requests: int) -> None:
    worth = Worth()
    run(worth, 4 * BLOCK, requests, (1.0, 1.25))
    assert run(worth, 40 * BLOCK, requests, (1.0, 1.25)) > 0.97
    thought = sum(worth.thinks(requests) for _ in range(2 * EVERY * BLOCK))
    assert thought == 2 * BLOCK  # of all steps one in EVERY


def test_what_pays_is_done() -> None:
    worth = Worth()
    run(worth, 4 * BLOCK, 16, (1.5, 1.25))
    assert run(worth, 40 * BLOCK, 16, (1.5, 1.25)) > 0.95 * 1.2


def test_it_is_noticed_when_that_changes() -> None:
    worth = Worth()
    run(worth, 20 * BLOCK, 16, (1.0, 1.25))
    run(worth, 4 * EVERY * BLOCK, 16, (2.0, 1.25))
    assert run(worth, 20 * BLOCK, 16, (2.0, 1.25)) > 1.4
    run(worth, 40 * BLOCK, 16, (0.8, 1.25))
    assert run(worth, 40 * BLOCK, 16, (0.8, 1.25)) > 0.95


def test_loads_are_apart() -> None:
    worth = Worth()
    for _ in range(20):
        run(worth, BLOCK, 16, (1.0, 1.5))
        run(worth, BLOCK, 4, (2.0, 1.2))
    assert run(worth, 30 * BLOCK, 16, (1.0, 1.5)) > 0.96
    assert run(worth, 30 * BLOCK, 4, (2.0, 1.2)) > 1.5


def test_of_few_requests_each_decides_for_itself() -> None:
    worth = Worth()
    for requests in (1, FEW - 1):
        run(worth, 4 * BLOCK, requests, (1.0, 2.0))
        assert all(worth.thinks(requests) for _ in range(4 * BLOCK))


def test_a_step_that_was_held_up_says_nothing() -> None:
    worth = Worth()
    run(worth, 20 * BLOCK, 8, (1.0, 1.25))
    worth.observe(8, False, 8, 1000.0)
    assert run(worth, 20 * BLOCK, 8, (1.0, 1.25)) > 0.97


@pytest.mark.parametrize("slower", [1.5, 40.0])
@pytest.mark.parametrize("blocks", [3, 10, 17])
@pytest.mark.parametrize("thinking", [(1.0, 1.25), (1.5, 1.2)])
def test_a_machine_that_was_slow_for_a_while_says_nothing(
    slower: float, blocks: int, thinking: tuple[float, float]
) -> None:
    ideal = max(1.0, thinking[0] / thinking[1])
    for steps in (1, 8, 80, 100, 200, 260):  # it begins and ends anywhere
        worth = Worth()
        run(worth, 20 * BLOCK + steps, 8, thinking)
        run(worth, blocks * BLOCK + steps, 8, thinking, slower=slower)
        assert run(worth, 40 * BLOCK, 8, thinking) > 0.95 * ideal
