"""Which rows are kept for tokens that are still to come, and which are let go."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import torch
from torch import Tensor

from samplers.drawn import DrawnScores


class Row:
    """A score that is the same for every token, and can be seen to vanish."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, rows: Tensor, tokens: Tensor) -> Tensor:
        return torch.full((len(rows),), self.value)


def take(scores: DrawnScores, slots: list[int], token: int = 1) -> list[float]:
    return scores.take(np.array(slots), torch.full((len(slots),), token)).tolist()


def test_calls_of_one_step_are_found_and_let_go_when_their_tokens_are_in() -> None:
    scores = DrawnScores(4)
    for slot in range(4):
        scores.admit(slot)
    first, second = Row(-1.0), Row(-2.0)
    scores.note(np.array([0, 2]), first)
    scores.note(np.array([1, 3]), second)
    seen = [weakref.ref(first), weakref.ref(second)]
    del first, second
    assert take(scores, [3, 0]) == [-2.0, -1.0]
    scores.free(2)  # its row failed
    assert take(scores, [1]) == [-2.0]
    gc.collect()
    assert [ref() for ref in seen] == [None, None]
    assert np.isnan(take(scores, [0, 1])).all()


def test_a_token_its_row_left_nothing_is_told_from_one_without_a_row() -> None:
    scores = DrawnScores(2)
    for slot in range(2):
        scores.admit(slot)
    scores.note(np.array([0]), Row(-np.inf))
    assert take(scores, [0, 1])[0] == -np.inf and np.isnan(take(scores, [1])[0])


def test_a_former_owners_row_is_never_found() -> None:
    scores = DrawnScores(1)
    scores.admit(0)
    scores.note(np.array([0]), Row(-1.0))
    scores.admit(0)
    assert np.isnan(take(scores, [0])).all()


def test_rows_since_a_snapshot_live_as_long_as_somebody_may_need_them() -> None:
    scores = DrawnScores(1)
    scores.admit(0)
    seen = []
    saved = None
    for depth in range(3):
        row = Row(-float(depth))
        seen.append(weakref.ref(row))
        scores.note(np.array([0]), row)
        del row
        saved = saved or scores.snapshot(0)
        if depth < 2:
            assert take(scores, [0]) == [-depth]
    scores.restore(0, saved)
    saved = None
    assert [take(scores, [0], token)[0] for token in (1, 1, 5)] == [0.0, -1.0, -2.0]
    scores.note(np.array([0]), Row(-7.0))
    gc.collect()
    assert [ref() for ref in seen] == [None] * 3


def test_another_path_does_not_find_rows_of_the_first() -> None:
    scores = DrawnScores(1)
    scores.admit(0)
    saved = scores.snapshot(0)
    scores.note(np.array([0]), Row(-1.0))
    take(scores, [0], 3)
    scores.note(np.array([0]), Row(-2.0))
    take(scores, [0], 3)
    scores.restore(0, saved)
    assert take(scores, [0], 4) == [-1.0]
    assert np.isnan(take(scores, [0], 3)).all()
