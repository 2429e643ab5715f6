"""vLLM's outputs in our words. Needs no vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.request import FinishReason
from engine.runners.vllm.outputs import delta_of, prompt_scores_of, score_of


def listed(**logprobs: tuple[float, int]) -> Any:
    """Of tokens t1, t2, ...: (log-probability, rank)."""
    return {int(name[1:]): SimpleNamespace(logprob=value, rank=rank) for name, (value, rank) in logprobs.items()}


def output(tokens: list[int], positions: list[Any], reason: str | None = None, stop: Any = None) -> Any:
    return SimpleNamespace(token_ids=tokens, logprobs=positions, finish_reason=reason, stop_reason=stop)


def test_a_token_below_the_list_has_its_own_rank() -> None:
    score = score_of(9, listed(t9=(-5.0, 40), t3=(-0.5, 1), t4=(-1.0, 2)), 2)
    assert (score.logprob, score.rank, score.top) == (-5.0, 40, ((3, -0.5), (4, -1.0)))


def test_ties_go_to_the_lower_id() -> None:
    assert score_of(4, listed(t7=(-0.5, 1), t4=(-0.5, 1), t2=(-3.0, 3)), 2).top == ((4, -0.5), (7, -0.5))


def test_scores_are_made_only_where_they_are_asked_for() -> None:
    positions = [listed(t1=(-0.1, 1)), listed(t2=(-0.2, 1))]
    plain = delta_of(3, output([1, 2], positions), None)
    assert (plain.choice, plain.token_ids, plain.logprobs, plain.scores) == (3, [1, 2], [-0.1, -0.2], [])
    assert [one.top for one in delta_of(0, output([1, 2], positions), 0).scores] == [(), ()]
    nothing = delta_of(0, output([1, 2], None), None)
    assert (nothing.token_ids, nothing.logprobs, nothing.scores) == ([1, 2], [], [])


@pytest.mark.parametrize(
    ("reason", "stop", "expected", "token"),
    [
        ("stop", 7, FinishReason.STOP, 7),
        ("length", None, FinishReason.LENGTH, None),
        ("abort", None, FinishReason.ABORT, None),
        ("error", None, FinishReason.ERROR, None),
    ],
)
def test_ends(reason: str, stop: int | None, expected: FinishReason, token: int | None) -> None:
    finish = delta_of(0, output([7], [listed(t7=(-0.1, 1))], reason, stop), None).finish
    assert finish is not None and (finish.reason, finish.stop_token_id) == (expected, token)


def test_scores_of_a_prompt_begin_where_they_are_wanted() -> None:
    positions = [None, listed(t5=(-1.0, 2), t6=(-0.5, 1)), listed(t6=(-2.0, 3), t1=(-0.1, 1))]
    scores = prompt_scores_of([4, 5, 6], positions, 1, 2)
    assert scores[:2] == [None, None]
    assert scores[2].top == ((1, -0.1),)
