"""Page tables: slots and runs, copy-on-write, exhaustion, contiguity, integrity.

python -m pytest tests/engine/test_pages.py
"""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from engine.pages import Branch, IntegrityError, OutOfPages, Pages


def branch_of(pages: Pages, length: int) -> Branch:
    branch = pages.new_branch()
    pages.append(branch, length)
    return branch


def brute_slots(pages: Pages, branch: Branch, start: int, stop: int) -> list[int]:
    size = pages.page_size
    return [branch.pages[i // size] * size + i % size for i in range(start, stop)]


def brute_runs(slots: list[int], page_size: int) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for slot in slots:
        if runs and runs[-1][1] == slot:
            runs[-1] = (runs[-1][0], slot + 1)
        else:
            runs.append((slot, slot + 1))
    return runs


# ---- where tokens lie


@pytest.mark.parametrize("contiguous", [True, False])
def test_slots_and_runs_agree_with_their_definition(contiguous: bool) -> None:
    rng = random.Random(5)
    pages = Pages(60, 4, contiguous)
    branches = [pages.new_branch() for _ in range(4)]
    for _ in range(300):
        branch = rng.choice(branches)
        if rng.random() < 0.3:
            pages.truncate(branch, rng.randint(0, branch.length))
        elif pages.pages_needed(branch, 7) <= pages.available():
            pages.append(branch, rng.randint(1, 7))
        start = rng.randint(0, branch.length)
        stop = rng.randint(start, branch.length)
        expected = brute_slots(pages, branch, start, stop)
        slots = pages.slots(branch, start, stop - start)
        assert slots.dtype == np.int64 and slots.tolist() == expected
        assert [pages.slot(branch, i) for i in range(start, stop)] == expected
        assert pages.runs(branch, start, stop) == brute_runs(expected, 4)
        pages.check_integrity(branches)


def test_an_empty_range_has_no_slots_and_no_runs() -> None:
    pages = Pages(4, 4, True)
    branch = pages.new_branch()
    assert pages.slots(branch, 0, 0).tolist() == [] and pages.runs(branch, 0, 0) == []
    assert pages.shared_pages([]) == 0 and pages.shared_pages([branch]) == 0


def test_page_zero_is_never_handed_out() -> None:
    for contiguous in (True, False):
        pages = Pages(5, 4, contiguous)
        assert sorted(branch_of(pages, 16).pages) == [1, 2, 3, 4]


@pytest.mark.parametrize("arguments", [(1, 4), (8, 3), (8, 0)])
def test_impossible_sizes_are_refused(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError):
        Pages(*arguments, True)


# ---- exhaustion


@pytest.mark.parametrize("contiguous", [True, False])
def test_an_exhausted_pool_changes_nothing(contiguous: bool) -> None:
    pages = Pages(4, 4, contiguous)
    branch, other = branch_of(pages, 6), branch_of(pages, 1)
    table = branch.pages.copy()
    assert pages.pages_needed(branch, 3) == 1 and pages.available() == 0
    with pytest.raises(OutOfPages):
        pages.append(branch, 3)
    assert (branch.pages, branch.length) == (table, 6)
    pages.check_integrity([branch, other])
    pages.append(branch, 2)  # still fits into the tail page
    assert branch.length == 8


def test_a_copy_that_does_not_fit_changes_nothing() -> None:
    pages = Pages(2, 4, True)
    parent = branch_of(pages, 2)
    child = pages.fork(parent)
    assert pages.pages_needed(child, 1) == 1
    with pytest.raises(OutOfPages):
        pages.append(child, 1)
    pages.check_integrity([parent, child])
    assert pages.drain_copies() == []
    pages.release(parent)
    pages.append(child, 1)  # sole holder now: in place
    assert pages.drain_copies() == []


def test_appending_nothing_needs_nothing() -> None:
    pages = Pages(2, 4, True)
    parent = branch_of(pages, 2)
    child = pages.fork(parent)
    assert pages.pages_needed(child, 0) == 0
    pages.append(child, 0)
    assert child.pages == parent.pages


def test_release_is_idempotent_and_leaves_an_empty_branch() -> None:
    pages = Pages(9, 4, True)
    branch = branch_of(pages, 13)
    for _ in range(2):
        pages.release(branch)
        pages.check_integrity([])
        assert (pages.free, pages.in_use) == (8, 0)
    pages.append(branch, 3)
    pages.check_integrity([branch])


# ---- copy-on-write


@pytest.mark.parametrize("k", [2, 3, 8])
def test_k_holders_of_a_tail_page_make_k_minus_one_copies(k: int) -> None:
    pages = Pages(40, 4, True)
    parent = branch_of(pages, 6)
    holders = [parent] + [pages.fork(parent) for _ in range(k - 1)]
    assert pages.in_use == 2
    tail = parent.pages[-1]
    for holder in holders:
        pages.append(holder, 1)
    copies = pages.drain_copies()
    assert len(copies) == k - 1 and {source for source, _ in copies} == {tail}
    assert sorted(target for _, target in copies) == sorted(holder.pages[-1] for holder in holders[:-1])
    assert holders[-1].pages[-1] == tail  # the last one writes in place
    for holder in holders:
        pages.append(holder, 1)
    assert pages.drain_copies() == []
    assert pages.shared_pages(holders) == 1
    pages.check_integrity(holders)


def test_a_fork_at_a_page_boundary_copies_nothing() -> None:
    pages = Pages(20, 4, True)
    parent = branch_of(pages, 8)
    child = pages.fork(parent)
    for branch in (parent, child):
        pages.append(branch, 5)
    assert pages.drain_copies() == []
    assert pages.shared_pages([parent, child]) == 2
    assert not set(parent.pages[2:]) & set(child.pages[2:])


def test_a_copy_of_a_copy_reads_the_page_that_has_the_content() -> None:
    pages = Pages(20, 4, False)
    first = branch_of(pages, 6)
    second = pages.fork(first)
    tail = first.pages[-1]
    pages.append(second, 1)
    pages.truncate(second, 6)
    third = pages.fork(second)
    pages.append(third, 1)
    assert pages.drain_copies() == [(tail, second.pages[-1]), (tail, third.pages[-1])]


def test_a_source_may_be_given_away_before_the_copies_are_executed() -> None:
    pages = Pages(4, 4, False)
    parent = branch_of(pages, 2)
    source = parent.pages[0]
    child = pages.fork(parent)
    pages.append(child, 1)
    pages.release(parent)
    other = branch_of(pages, 2)  # takes the source page
    assert other.pages == [source]
    grandchild = pages.fork(other)
    pages.append(grandchild, 1)
    copies = pages.drain_copies()
    assert copies[0] == (source, child.pages[0])
    assert len({target for _, target in copies}) == len(copies) and source not in dict((t, s) for s, t in copies)


def test_a_copy_nobody_waits_for_is_dropped() -> None:
    pages = Pages(9, 4, True)
    parent = branch_of(pages, 2)
    child = pages.fork(parent)
    pages.append(child, 1)
    pages.release(child)
    assert pages.drain_copies() == []


def test_a_shared_page_cut_by_one_holder_is_copied_before_it_is_written() -> None:
    pages = Pages(9, 4, True)
    parent = branch_of(pages, 8)
    child = pages.fork(parent)
    pages.truncate(child, 3)
    shared = parent.pages[0]
    pages.append(child, 1)
    assert pages.drain_copies() == [(shared, child.pages[0])]
    assert parent.pages[0] == shared
    pages.check_integrity([parent, child])


# ---- compaction of a draft tree


def test_compaction_moves_only_rows_out_of_place() -> None:
    pages = Pages(9, 4, True)
    branch = branch_of(pages, 6)
    pages.append(branch, 7)
    source, target = pages.compact_slots(branch, 6, [0, 1, 4, 6])
    assert source.tolist() == [pages.slot(branch, 10), pages.slot(branch, 12)]
    assert target.tolist() == [pages.slot(branch, 8), pages.slot(branch, 9)]
    for rows in ([], [0], [0, 1, 2]):
        source, target = pages.compact_slots(branch, 6, rows)
        assert source.dtype == target.dtype == np.int64 and len(source) == len(target) == 0


def test_compaction_refuses_pages_of_others() -> None:
    pages = Pages(9, 4, True)
    branch = branch_of(pages, 6)
    pages.fork(branch)
    with pytest.raises(AssertionError, match="not ours alone"):
        pages.compact_slots(branch, 4, [1])


# ---- contiguity


def test_sequences_that_grow_in_turn_do_not_interleave() -> None:
    pages = Pages(513, 4, True)
    branches = [pages.new_branch() for _ in range(8)]
    for _ in range(60 * 4):
        for branch in branches:
            pages.append(branch, 1)
    assert pages.in_use == 480
    assert max(len(pages.runs(branch, 0, branch.length)) for branch in branches) <= 4
    alone = Pages(513, 4, True)
    assert len(alone.runs(branch_of(alone, 2048), 0, 2048)) == 1


def test_a_prompt_leaves_its_neighbours_room() -> None:
    pages = Pages(1001, 4, True)
    branches = [branch_of(pages, 400) for _ in range(4)]
    for _ in range(140):
        for branch in branches:
            pages.append(branch, 4)
    assert [len(branch.starts) for branch in branches] == [1] * 4


def served(pages: Pages, rounds: int) -> list[list[int]]:
    """First pages of ten sequences at a time, each of 3 pages with the first two left to the cache afterwards."""
    firsts = []
    for k in range(rounds):
        branches = [pages.new_branch(expected=10) for _ in range(10)]
        for branch in branches:
            pages.append(branch, 3)
        for _ in range(7):
            for branch in branches:
                pages.append(branch, 1)
        assert all(len(branch.starts) == 1 for branch in branches)
        for i, branch in enumerate(branches):
            pages.register(branch, [1000 * k + 100 * i + j for j in range(9)])
        pages.check_integrity(branches)
        firsts.append(sorted(branch.pages[0] for branch in branches))
        for branch in branches:
            pages.release(branch)
    return firsts


def test_sequences_of_known_length_start_at_regular_distances() -> None:
    """Also when the cache has left something in every cell: what is oldest makes room before runs are cut."""
    pages = Pages(161, 4, True)
    for first in served(pages, 12):
        distances = {(b - a) % 160 for a, b in pairwise(first)}
        assert distances <= {4, 160 - 36}, first
    assert pages.cached >= 60


def test_a_run_too_long_for_any_cell_is_still_handed_out() -> None:
    pages = Pages(33, 4, True)
    branch = pages.new_branch(expected=1000)
    pages.append(branch, 4)
    assert branch.pages == [1]
    pages.append(branch, 31 * 4)
    assert pages.available() == 0
    pages.check_integrity([branch])


def test_a_fragmented_pool_is_used_up_to_the_last_page() -> None:
    pages = Pages(101, 4, True)
    singles = [branch_of(pages, 4) for _ in range(100)]
    rng = random.Random(3)
    rng.shuffle(singles)
    for branch in singles[:50]:
        pages.release(branch)
    whole = branch_of(pages, 200)
    assert pages.available() == 0 and len(set(whole.pages)) == 50
    pages.check_integrity([*singles[50:], whole])


def test_evicted_pages_form_extents_again() -> None:
    pages = Pages(1025, 4, True)
    old = branch_of(pages, 4096)
    pages.register(old, list(range(4096)))
    pages.release(old)
    assert (pages.free, pages.cached) == (0, 1024)
    branches = [pages.new_branch() for _ in range(4)]
    for _ in range(64 * 4):
        for branch in branches:
            pages.append(branch, 1)
    assert max(len(branch.starts) for branch in branches) <= 32  # one page at a time would make up to 64
    pages.check_integrity(branches)


# ---- shared pages


def test_shared_pages_counts_full_leading_pages_only() -> None:
    pages = Pages(40, 4, True)
    parent = branch_of(pages, 14)
    children = [pages.fork(parent) for _ in range(2)]
    assert pages.shared_pages([parent, *children]) == 3
    pages.truncate(children[1], 9)
    assert pages.shared_pages([parent, *children]) == 2
    assert pages.shared_pages([parent, children[0]]) == 3
    assert pages.shared_pages([parent, branch_of(pages, 14)]) == 0
    assert pages.shared_pages([parent]) == 3


# ---- integrity


def test_a_leak_is_noticed() -> None:
    pages = Pages(9, 4, True)
    branch = branch_of(pages, 5)
    with pytest.raises(IntegrityError, match="held by 0 branches"):
        pages.check_integrity([])
    branch.length = 9
    with pytest.raises(IntegrityError, match="2 pages for 9 tokens"):
        pages.check_integrity([branch])


def test_a_page_that_is_free_and_used_is_noticed() -> None:
    pages = Pages(9, 4, True)
    branch = branch_of(pages, 5)
    pages._free.give([branch.pages[0]])
    with pytest.raises(IntegrityError, match="not exactly one of"):
        pages.check_integrity([branch])
    with pytest.raises(AssertionError, match="freed twice"):
        pages._free.give([branch.pages[0]])
