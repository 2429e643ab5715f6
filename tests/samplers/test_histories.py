"""Histories against plain lists: what has occurred before, by the definition."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.contract import Shape
from samplers.histories import Repeats, common_endings

tokens = st.lists(st.integers(-1, 2), max_size=40)


def before(ids: list[int]) -> list[int]:
    """How many tokens in front of each position equal the last ones; -1 equals nothing."""
    result = []
    for position in range(len(ids)):
        size = 0
        while size < position and ids[position - 1 - size] == ids[-1 - size] >= 0:
            size += 1
        result.append(size)
    return result


@settings(max_examples=300, deadline=None)
@given(tokens)
def test_common_endings_by_their_definition(ids: list[int]) -> None:
    assert common_endings(np.array(ids, np.int64)).tolist() == before(ids)


@settings(max_examples=200, deadline=None)
@given(tokens, tokens, tokens)
def test_appending_to_slots_of_unequal_length_equals_starting_anew(
    one: list[int], two: list[int], more: list[int]
) -> None:
    repeats = Repeats(Shape(3, 5, torch.device("cpu")))
    ids = {2: list(one), 0: list(two)}
    for slot, start in ids.items():
        repeats.write(slot, np.array(start, np.int64))
    for token in more * 3:  # beyond the first width
        repeats.append(np.array([2, 0]), np.array([token, (token + 2) % 3]))
        ids[2].append(token)
        ids[0].append((token + 2) % 3)
    slots = np.array([0, 2, 0])
    for least in (0, 1, 2, 5):
        found = repeats.occurrences(slots, np.full(3, least))
        expected = [(r, j) for r, slot in enumerate(slots) for j, size in enumerate(before(ids[slot])) if size >= least]
        assert list(zip(*(array.tolist() for array in found), strict=True)) == expected
