"""Which rows of a step are attended to together: neighbours in the packed row and the prefixes they share."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch

from engine.pages import Branch, Pages
from engine.runners.torch.packing import Chunk, _partition, order, pack
from engine.runners.torch.step import Group

SYSTEM = [1] * 64


def groups(pages: Pages, branches: list[Branch]) -> list[Group]:
    branches = [branches[i] for i in order(branches)]
    chunks = [Chunk(branch, branch.length - 1, [5]) for branch in branches]
    return pack(pages, chunks, [0], torch.device("cpu")).groups


def asking(pages: Pages, question: int, length: int, choices: int) -> list[Branch]:
    """Choices of one request behind the common system prompt, one generated token each."""
    tokens = SYSTEM + [question] * (length - len(SYSTEM))
    leader = pages.new_branch(b"", length + 64)
    pages.append(leader, length - pages.attach_prefix(leader, tokens))
    pages.register(leader, tokens)
    family = [leader, *(pages.fork(leader) for _ in range(choices - 1))]
    for branch in family:
        pages.append(branch, 1)
    return family


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_request_that_shares_one_page_leaves_a_family_its_prefix(shuffled: bool) -> None:
    pages = Pages(500, 64, True)
    family, other = asking(pages, 2, 512, 16), asking(pages, 3, 94, 1)
    assert groups(pages, family) == [Group(0, 16, 512)]
    together = family + other
    if shuffled:
        random.Random(1).shuffle(together)
    (group,) = groups(pages, together)
    assert (group.count, group.length) == (16, 512)


def test_families_behind_one_system_page_keep_their_own_prefixes() -> None:
    pages = Pages(500, 64, True)
    families = [asking(pages, 10 + i, 512, 2) for i in range(6)]
    mixed = [branch for pair in zip(*families, strict=True) for branch in pair]
    assert groups(pages, mixed) == [Group(2 * i, 2, 512) for i in range(6)]


def test_many_single_requests_share_the_system_page() -> None:
    pages = Pages(500, 64, True)
    singles = [branch for i in range(10) for branch in asking(pages, 10 + i, 200, 1)]
    assert groups(pages, singles) == [Group(0, 10, 64)]


def test_only_what_is_cached_before_the_step_is_shared() -> None:
    pages = Pages(50, 4, True)
    first = pages.new_branch()
    pages.append(first, 8)
    second = pages.fork(first)
    chunks = [Chunk(branch, 5, [7, 7, 7]) for branch in (first, second)]
    assert pack(pages, chunks, [0], torch.device("cpu")).groups == [Group(0, 2, 4)]


def most_saved(shared: tuple[int, ...]) -> int:
    """By trying every way to cut the row."""

    @cache
    def best(chunks: int) -> int:
        groups = [best(i) + (chunks - 1 - i) * min(shared[i : chunks - 1]) for i in range(chunks - 1)]
        return max([best(chunks - 1) if chunks else 0, *groups])

    return best(len(shared) + 1)


def test_groups_are_disjoint_and_save_most() -> None:
    rng = random.Random(4)
    for _ in range(500):
        shared = tuple(rng.choice([0, 1, 1, 2, 3, 8]) for _ in range(rng.randint(1, 12)))
        found = _partition(shared)
        taken = [chunk for first, count, _ in found for chunk in range(first, first + count)]
        assert len(set(taken)) == len(taken) and set(taken) <= set(range(len(shared) + 1))
        for first, count, common in found:
            assert count > 1 and common == min(shared[first : first + count - 1]) > 0
        assert sum((count - 1) * common for _, count, common in found) == most_saved(shared)
