"""The prefix cache: what a later request finds, what it must not find, what is given up first.

python -m pytest tests/engine/test_prefix_cache.py
"""

from __future__ import annotations

import gc

import numpy as np
import pytest

from engine import prefix_cache
from engine.pages import Branch, IntegrityError, Pages

PROMPT = list(range(100, 114))  # three full pages of four and a tail of two


def computed(pages: Pages, token_ids: list[int], namespace: bytes = b"") -> Branch:
    """A branch whose tokens have all been computed and registered."""
    branch = pages.new_branch(namespace)
    found = pages.attach_prefix(branch, token_ids)
    pages.append(branch, len(token_ids) - found)
    pages.register(branch, token_ids)
    return branch


def found(pages: Pages, token_ids: list[int], namespace: bytes = b"") -> int:
    branch = pages.new_branch(namespace)
    tokens = pages.attach_prefix(branch, token_ids)
    pages.release(branch)
    return tokens


# ---- what is found


@pytest.mark.parametrize("alive", [True, False])
def test_the_same_prompt_again_computes_only_the_tail(alive: bool) -> None:
    pages = Pages(20, 4, True)
    first = computed(pages, PROMPT)
    table = first.pages.copy()
    if not alive:
        pages.release(first)
        assert (pages.cached, pages.in_use) == (3, 0)
    second = pages.new_branch()
    assert pages.attach_prefix(second, PROMPT) == 12 == second.length
    assert second.pages == table[:3] and pages.cached == 0
    pages.check_integrity([first, second])


@pytest.mark.parametrize(("length", "expected"), [(0, 0), (1, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8), (13, 12)])
def test_the_last_token_is_always_computed(length: int, expected: int) -> None:
    pages = Pages(20, 4, True)
    computed(pages, PROMPT)
    assert found(pages, PROMPT[:length]) == expected


def test_a_common_beginning_is_enough_and_arrays_are_welcome() -> None:
    pages = Pages(20, 4, True)
    computed(pages, PROMPT)
    assert found(pages, [*PROMPT[:9], 7, 7, 7, 7, 7]) == 8
    assert found(pages, np.array(PROMPT)) == 12
    assert found(pages, tuple(PROMPT)) == 12
    assert found(pages, PROMPT[4:]) == 0  # the same page at another place


def test_generated_pages_are_found_in_the_next_turn() -> None:
    pages = Pages(20, 4, True)
    branch = computed(pages, PROMPT)
    tokens = PROMPT.copy()
    for token in range(7):
        pages.append(branch, 1)
        tokens.append(token)
        pages.register(branch, tokens)
    pages.release(branch)
    assert found(pages, [*tokens, 1, 2, 3]) == 20


def test_namespaces_share_nothing() -> None:
    pages = Pages(20, 4, True)
    pages.release(computed(pages, PROMPT, b"a"))
    assert found(pages, PROMPT, b"a") == 12
    assert found(pages, PROMPT, b"b") == 0
    assert found(pages, PROMPT) == 0


def test_only_computed_full_pages_are_registered() -> None:
    pages = Pages(20, 4, True)
    branch = pages.new_branch()
    pages.append(branch, 14)
    pages.register(branch, PROMPT[:7])
    assert found(pages, PROMPT) == 4
    pages.register(branch, PROMPT[:7])
    pages.register(branch, PROMPT)
    pages.register(branch, PROMPT)
    assert found(pages, PROMPT) == 12
    pages.release(branch)
    assert (pages.cached, pages.free) == (3, 16)


def test_forks_register_their_common_pages_once() -> None:
    pages = Pages(20, 4, True)
    first = pages.new_branch()
    pages.append(first, 14)
    second = pages.fork(first)
    pages.register(first, PROMPT)
    pages.register(second, PROMPT)
    pages.release(first)
    assert pages.cached == 0
    pages.release(second)
    assert pages.cached == 3
    pages.check_integrity([])


def test_equal_pages_computed_twice_are_both_kept() -> None:
    pages = Pages(20, 4, True)
    first, second = pages.new_branch(), pages.new_branch()
    for branch in (first, second):
        pages.append(branch, 14)
        pages.register(branch, PROMPT)
    assert not set(first.pages) & set(second.pages)
    pages.append(second, 2)
    pages.register(second, [*PROMPT, 1, 2])
    pages.release(second)
    assert pages.cached == 1  # its fourth page continues the prefix that the first branch registered
    assert found(pages, [*PROMPT, 1, 2, 3]) == 16
    pages.release(first)
    pages.check_integrity([])


# ---- registered pages are read only


def test_a_cut_by_the_sole_holder_unregisters_the_page() -> None:
    pages = Pages(20, 4, True)
    branch = computed(pages, PROMPT)
    pages.truncate(branch, 6)
    assert found(pages, PROMPT) == 4
    pages.append(branch, 3)
    assert pages.drain_copies() == []
    pages.register(branch, [*PROMPT[:6], 1, 2, 3])
    assert found(pages, PROMPT) == 4
    assert found(pages, [*PROMPT[:6], 1, 2, 3]) == 8
    pages.check_integrity([branch])


def test_a_cut_in_a_shared_page_leaves_it_to_the_others() -> None:
    pages = Pages(20, 4, True)
    first = computed(pages, PROMPT)
    second = computed(pages, PROMPT)
    pages.truncate(second, 6)
    pages.append(second, 1)
    assert pages.drain_copies() == [(first.pages[1], second.pages[1])]
    assert found(pages, PROMPT) == 12
    pages.check_integrity([first, second])


def test_a_registered_page_left_to_the_branch_that_cut_it_is_unregistered_when_written() -> None:
    pages = Pages(20, 4, True)
    first = computed(pages, PROMPT)
    second = computed(pages, PROMPT)
    pages.truncate(second, 6)
    pages.release(first)
    assert found(pages, PROMPT) == 12  # nothing has been overwritten yet
    pages.append(second, 1)
    assert pages.drain_copies() == []
    assert found(pages, PROMPT) == 4
    pages.check_integrity([second])


# ---- damage


def test_forgotten_pages_are_found_by_nobody_and_computed_anew() -> None:
    pages = Pages(20, 4, True)
    branch = computed(pages, PROMPT)
    pages.forget(branch, {branch.pages[1]})
    assert found(pages, PROMPT) == 4  # what lies before the damage is good
    pages.check_integrity([branch])
    pages.release(branch)
    assert pages.cached == 1
    pages.release(computed(pages, PROMPT))
    assert found(pages, PROMPT) == 12
    pages.check_integrity([])


def test_what_was_cached_behind_a_forgotten_page_stays_lost() -> None:
    pages = Pages(20, 4, True)
    branch = computed(pages, PROMPT[:8])
    longer = computed(pages, PROMPT)  # attaches to those two pages and computes a third from them
    pages.release(longer)
    pages.forget(branch, {branch.pages[0]})
    pages.release(branch)
    again = computed(pages, PROMPT[:8])
    assert found(pages, PROMPT) == 8
    pages.check_integrity([again])


def test_a_sibling_keeps_forgotten_pages_until_it_goes() -> None:
    pages = Pages(20, 4, True)
    branch = computed(pages, PROMPT)
    sibling = pages.fork(branch)
    pages.forget(branch, set(branch.pages))
    pages.release(branch)
    assert sibling.pages and found(pages, PROMPT) == 0
    pages.append(sibling, 4)
    pages.register(sibling, [*PROMPT, 1, 2, 3, 4])
    pages.check_integrity([sibling])
    pages.release(sibling)
    pages.check_integrity([])


def test_forgetting_needs_damage() -> None:
    pages = Pages(20, 4, True)
    branch = computed(pages, PROMPT)
    pages.forget(branch, {19})
    assert found(pages, PROMPT) == 12


# ---- collisions


def test_a_collision_of_pages_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "chain_hash", lambda parent, tokens: 1 if len(tokens) == 16 else 0)
    pages = Pages(20, 4, True)
    computed(pages, PROMPT)
    assert found(pages, [1, 2, 3, 4, 5]) == 0
    assert found(pages, PROMPT) == 4  # the second page collides with the first and is not listed
    other = computed(pages, [1, 2, 3, 4, 5])
    pages.release(other)
    assert pages.cached == 0


def test_equal_tokens_after_colliding_prefixes_are_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    real = prefix_cache.chain_hash
    first_pages = {np.array(p, np.int32).tobytes() for p in ([1, 1, 1, 1], [2, 2, 2, 2])}
    monkeypatch.setattr(prefix_cache, "chain_hash", lambda p, t: 99 if t in first_pages else real(p, t))
    pages = Pages(20, 4, True)
    computed(pages, [1, 1, 1, 1])
    computed(pages, [2, 2, 2, 2, 3, 3, 3, 3])  # its first page is not listed, the second could be
    assert found(pages, [1, 1, 1, 1, 3, 3, 3, 3, 0]) == 4


def test_colliding_namespaces_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = prefix_cache.chain_hash
    monkeypatch.setattr(prefix_cache, "chain_hash", lambda p, t: 7 if t in (b"a", b"b") else real(p, t))
    pages = Pages(20, 4, True)
    first = computed(pages, PROMPT, b"a")
    assert found(pages, PROMPT, b"b") == 0
    assert found(pages, PROMPT, b"a") == 12
    pages.check_integrity([first])


# ---- eviction


def test_the_least_recently_used_prefix_goes_first_and_children_before_parents() -> None:
    pages = Pages(7, 4, False)
    prompts = [[i] * 12 + [0] for i in (1, 2)]
    for prompt in prompts:
        branch = computed(pages, prompt[:12])
        pages.release(branch)
    assert (pages.free, pages.cached) == (0, 6)
    assert found(pages, prompts[0]) == 12  # used again: now the second prompt is the older one
    branch = pages.new_branch()
    left = []
    for _ in range(6):
        pages.append(branch, 4)
        left.append([len(computed_prefix(pages, prompt)) for prompt in prompts])
    assert left == [[3, 2], [3, 1], [3, 0], [2, 0], [1, 0], [0, 0]]
    pages.check_integrity([branch])


def computed_prefix(pages: Pages, token_ids: list[int]) -> list[int]:
    """The cached pages of a prompt, found without touching the order of eviction."""
    parent, table = pages.new_branch().prefixes[0], []
    for tokens in prefix_cache.token_pages(token_ids, pages.page_size, 0, len(token_ids) // pages.page_size):
        prefix = pages._cache.find(parent, tokens)
        if prefix is None:
            break
        table.append(prefix.page)
        parent = prefix
    return table


def test_pages_in_use_are_never_evicted() -> None:
    pages = Pages(7, 4, True)
    first = computed(pages, PROMPT[:12])
    pages.release(computed(pages, [1] * 8))
    branch = pages.new_branch()
    pages.append(branch, 12)
    assert pages.available() == 0 and found(pages, PROMPT) == 12 and found(pages, [1] * 9) == 0
    pages.check_integrity([first, branch])


def test_a_prefix_computed_again_leads_to_its_old_continuations() -> None:
    pages = Pages(20, 4, True)
    first, second = pages.new_branch(), pages.new_branch()
    for branch in (first, second):
        pages.append(branch, 8)
        pages.register(branch, PROMPT[:8])
    pages.append(second, 4)
    pages.register(second, PROMPT[:12])
    pages.truncate(first, 2)  # unregisters the first page; the second one is cached, the third in use
    assert found(pages, PROMPT) == 0
    third = computed(pages, PROMPT[:4])
    assert found(pages, PROMPT) == 12
    pages.check_integrity([first, second, third])


def test_prefixes_without_pages_are_forgotten() -> None:
    pages = Pages(7, 4, True)
    pages.release(computed(pages, PROMPT, b"once"))
    branch = pages.new_branch()
    pages.append(branch, 24)
    gc.collect()
    assert len(pages._cache._listed) == 1  # the namespace of `branch`


def test_a_cache_that_lost_a_page_is_noticed() -> None:
    pages = Pages(20, 4, True)
    branch = computed(pages, PROMPT)
    branch.prefixes[1].page = 9
    with pytest.raises(IntegrityError, match="not the page of its hash"):
        pages.check_integrity([branch])
