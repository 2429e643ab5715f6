"""Reallocation: what is granted, and what never is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voting.budget import reallocate

M = 8


@pytest.mark.parametrize(
    ("used", "solved", "granted", "unspent"),
    [
        ([8, 8, 1, 2], None, (6, 6, 0, 0), 1),  # 13 saved: floor of equal shares
        ([8, 1, 1, 1], None, (8, 0, 0, 0), 13),  # twice the limit in all
        ([1, 1, 1], None, (0, 0, 0), 21),  # nobody has branched: nobody needs more
        ([8, 8], None, (0, 0), 0),
        ([8], None, (0,), 0),
        ([3], None, (0,), 5),
        ([3], [False], (0,), 5),  # alone, whatever labels say
        ([8, 2, 4], [True, False, True], (0, 10, 0), 0),
        ([8, 2, 4], [False, False, True], (5, 5, 0), 0),
        ([2, 2, 2, 2], [False, True, True, True], (14, 0, 0, 0), 10),
        ([8, 2], [True, True], (0, 0), 6),
    ],
)
def test_by_hand(used: list[int], solved: list[bool] | None, granted: tuple[int, ...], unspent: int) -> None:
    found = reallocate(used, M, solved)
    assert (found.granted, found.unspent) == (granted, unspent)
    assert found.saved == sum(M - one for one in used)


@given(st.lists(st.tuples(st.integers(1, M), st.booleans()), max_size=12), st.booleans())
def test_invariants(prompts: list[tuple[int, bool]], with_labels: bool) -> None:
    used, solved = [one for one, _ in prompts], [one for _, one in prompts]
    found = reallocate(used, M, solved if with_labels else None)
    assert sum(found.granted) + found.unspent == found.saved
    assert found.unspent >= 0 and all(one >= 0 for one in found.granted)
    assert sum(used) + sum(found.granted) <= len(used) * M
    for one, right, more in zip(used, solved, found.granted, strict=True):
        assert one + more <= 2 * M
        assert not more or (not right if with_labels else one == M)


@pytest.mark.parametrize(("used", "solved"), [([0], None), ([9], None), ([1, 2], [True])])
def test_counts_that_cannot_be(used: list[int], solved: list[bool] | None) -> None:
    with pytest.raises(ValueError):
        reallocate(used, M, solved)
