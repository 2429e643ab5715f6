"""Texts of requests are read late, once for what several choices have in common."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from samplers.rng import Stream
from spec_decode.contract import DraftAdmission, DraftPlan, DraftTree
from spec_decode.drafters.per_request import PerRequest
from spec_decode.tree_forms import chain
from tests.spec_decode.test_past_outputs import NO_NOISE

PLAN = DraftPlan(4, 4)


class Echo:
    """Drafts the end of its text, and counts what all of its kind have read."""

    def __init__(self, remembers: bool = False) -> None:
        self.remembers = remembers
        self.text: list[int] = []
        self.read: list[int] = []  # by all copies
        self.kept: list[list[int]] = []

    def commit(self, tokens: Sequence[int]) -> None:
        self.text += tokens
        self.read += tokens

    def propose(self, plan: DraftPlan) -> DraftTree:
        ids = self.text[-plan.max_nodes :]
        return DraftTree.one_hot(ids, chain(len(ids)))

    def copy(self) -> Echo:
        twin = Echo(self.remembers)
        twin.text, twin.read, twin.kept = self.text.copy(), self.read, self.kept
        return twin

    def keep(self) -> None:
        self.kept.append(self.text)


def started(echo: Echo) -> PerRequest:
    drafter = PerRequest(lambda admission: echo)
    drafter.admit(0, DraftAdmission((1, 2, 3), 3))
    return drafter


def drafts(drafter: PerRequest, slot: int) -> list[int]:
    [tree] = drafter.propose([slot], [PLAN], NO_NOISE)
    return tree.tokens.tolist()


def test_nothing_is_read_until_drafts_are_wanted() -> None:
    echo = Echo()
    drafter = started(echo)
    drafter.commit(0, [4])
    drafter.commit(0, [5])
    assert echo.read == []
    assert drafts(drafter, 0) == [2, 3, 4, 5] and echo.read == [1, 2, 3, 4, 5]
    drafter.commit(0, [6])
    assert drafts(drafter, 0) == [3, 4, 5, 6] and echo.read == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("first", [0, 1, 2])
def test_choices_of_a_prompt_read_it_once(first: int) -> None:
    echo = Echo()
    drafter = started(echo)
    drafter.fork(0, 1, Stream(0, 1))
    drafter.fork(0, 2, Stream(0, 2))
    for slot in range(3):
        drafter.commit(slot, [10 + slot])
    for slot in (first, (first + 1) % 3, (first + 2) % 3):
        assert drafts(drafter, slot) == [1, 2, 3, 10 + slot]
    assert sorted(echo.read) == [1, 2, 3, 10, 11, 12]


def test_forks_of_forks_and_of_what_has_been_read() -> None:
    drafter = started(Echo())
    drafts(drafter, 0)
    drafter.commit(0, [4])
    drafter.fork(0, 1, Stream(0, 1))
    drafter.commit(1, [5])
    drafter.fork(1, 2, Stream(0, 2))
    drafter.commit(0, [6])
    drafter.commit(2, [7])
    assert [drafts(drafter, slot) for slot in (2, 0, 1)] == [[3, 4, 5, 7], [2, 3, 4, 6], [2, 3, 4, 5]]


@pytest.mark.parametrize("remembers", [False, True])
def test_a_finished_text_is_read_for_the_memory_only(remembers: bool) -> None:
    echo = Echo(remembers)
    drafter = started(echo)
    drafter.fork(0, 1, Stream(0, 1))
    drafter.commit(1, [4])
    drafter.free(0)
    drafter.free(1, keep=True)
    assert echo.kept == ([[1, 2, 3, 4]] if remembers else [])
    assert echo.read == ([1, 2, 3, 4] if remembers else [])
