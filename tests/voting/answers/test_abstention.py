"""Which samples abstain, and why."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voting.answers.abstention import ends_in_a_loop, judged
from voting.contract import Sample

LOOP = tuple(range(100, 110)) * 4


def reason(options: dict[str, bool] | None = None, **fields: Any) -> str | None:
    known: dict[str, Any] = {"token_ids": (1, 2), "n_tokens": 2, "mean_logprob": -1.0, "answer": "1", **fields}
    return judged(Sample(0, "text", **known), **(options or {})).abstain_reason


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"token_ids": None, "n_tokens": 0, "mean_logprob": None}, None),
        ({"answer": None}, "no_answer"),
        ({"token_ids": (), "n_tokens": 0, "mean_logprob": None}, "no_tokens"),
        ({"mean_logprob": -math.inf}, "bad_logprob"),
        ({"mean_logprob": math.nan}, "bad_logprob"),
        ({"finish_reason": "length"}, "truncated"),
        ({"finish_reason": "length", "token_ids": LOOP}, "truncated"),
        ({"token_ids": (1, *LOOP)}, "repetition"),
        ({"token_ids": (*LOOP, 2)}, "repetition"),  # an EOS ends the loop
        ({"token_ids": (*LOOP, 2), "finish_reason": "content_filter"}, None),
        ({"token_ids": LOOP, "abstain_reason": "low_confidence"}, "low_confidence"),
    ],
)
def test_reasons(fields: dict[str, Any], expected: str | None) -> None:
    assert reason(**fields) == expected


def test_options() -> None:
    assert reason({"keep_truncated": True}, finish_reason="length") is None
    assert reason({"keep_truncated": True}, finish_reason="length", answer=None) == "no_answer"
    assert reason({"keep_truncated": True}, finish_reason="length", token_ids=LOOP) == "repetition"
    assert reason({"guard_repetition": False}, token_ids=LOOP) is None


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        (range(100), False),
        ([7] * 31, False),
        ([7] * 32, True),
        ([*range(7)] * 4, False),  # an n-gram of 7
        ([*range(7)] * 8, True),  # of 14
        ([*range(8)] * 3, False),
        ([*range(8)] * 4, True),
        ([99, *range(8), *range(8), *range(8), *range(8)], True),
        ([*range(8)] * 4 + [99], False),
    ],
)
def test_loops(ids: Any, loops: bool) -> None:
    assert ends_in_a_loop(tuple(ids)) is loops


@given(
    st.lists(st.integers(0, 1), max_size=3), st.lists(st.integers(0, 1), min_size=1, max_size=12), st.integers(1, 12)
)
def test_loops_by_definition(start: list[int], part: list[int], times: int) -> None:
    ids = tuple(start + part * times)
    repeats = [ids[len(ids) - 4 * n :] == ids[len(ids) - n :] * 4 for n in range(8, len(ids) // 4 + 1)]
    assert ends_in_a_loop(ids) == any(repeats)
