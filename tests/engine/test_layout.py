"""Where the runs of live sequences lie, and that their places are not paid for with useful cached pages.

Requests come and go as from a scheduler that serves a few at a time; tokens are numbers nobody computes.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from engine.pages import Branch, Pages
from engine.runners.torch.lanes import Lane, regular_lanes
from engine.scheduler import Scheduler
from engine.sequence import activate
from tests.engine.fake_executor import request

PAGE = 64


def calls(pages: Pages, branches: list[Branch]) -> int:
    """Fused attention calls that the decode rows of these branches need."""
    levels: dict[int, list[Lane]] = {}
    for row, branch in enumerate(branches):
        for level, (start, stop) in enumerate(pages.runs(branch, 0, branch.length)):
            levels.setdefault(level, []).append(Lane(row, start, stop - start))
    return sum(len(regular_lanes(tuple(lanes), pages.num_pages * PAGE)) for lanes in levels.values())


def hit_rate(conversations: int, contiguous: bool, expected: int, requests: int) -> float:
    """Of the tokens of earlier turns, how many the next turn finds; 32 conversations are live at a time."""
    rng = random.Random(0)
    pages = Pages(2113, PAGE, contiguous)
    history = [[i + 1000 * k for i in range(rng.randrange(100, 900))] for k in range(conversations)]
    live: list[tuple[int, Branch, list[int], int]] = []
    hits = wanted = 0
    asked = set()
    for _ in range(requests):
        if len(live) == 32:
            which, branch, tokens, length = live.pop(rng.randrange(32))
            pages.append(branch, length - branch.length)
            tokens += [rng.randrange(4000) for _ in range(length - len(tokens))]
            pages.register(branch, tokens)
            pages.release(branch)
            history[which] = tokens if len(tokens) < 1500 else tokens[:300]
        which = rng.choice(sorted(set(range(conversations)) - {one[0] for one in live}))
        tokens = history[which] + [rng.randrange(4000) for _ in range(40)]
        branch = pages.new_branch(expected=expected)
        found = pages.attach_prefix(branch, tokens)
        if which in asked:
            hits += found
            wanted += (len(history[which]) - 1) // PAGE * PAGE
        asked.add(which)
        pages.append(branch, len(tokens) - found)
        pages.register(branch, tokens)
        live.append((which, branch, tokens, len(tokens) + rng.randrange(20, 150)))
    pages.check_integrity([one[1] for one in live])
    return hits / wanted


@pytest.mark.parametrize(("conversations", "expected"), [(60, 2048), (100, 2048), (100, 600), (130, 2048)])
def test_prefixes_of_conversations_are_found_as_with_least_recently_used_alone(
    conversations: int, expected: int
) -> None:
    """The pool holds 60 of them easily and 100 just; 130 are too many for anybody."""
    alone = hit_rate(conversations, False, expected, 1500)
    assert hit_rate(conversations, True, expected, 1500) >= 0.95 * alone
    assert alone > 0.9


def unique(rng: random.Random, prompt: Callable[[], int], output: int, requests: int) -> list[int]:
    """Calls per step of 16 live sequences that share nothing, once the cache has filled the pool."""
    pages = Pages(1057, PAGE, True)
    live: list[tuple[Branch, list[int], int]] = []
    seen = []
    for k in range(requests):
        if len(live) == 16:
            branch, tokens, length = live.pop(0)
            pages.append(branch, length - branch.length)
            pages.register(branch, tokens + [0] * (length - len(tokens)))
            pages.release(branch)
        tokens = [rng.randrange(4000) for _ in range(prompt())]
        branch = pages.new_branch(expected=len(tokens) + output)
        pages.append(branch, len(tokens) + 1)
        pages.register(branch, tokens)
        live.append((branch, tokens, len(tokens) + output))
        if k > requests // 2:
            seen.append(calls(pages, [one[0] for one in live]))
    assert pages.cached > pages.num_pages // 4
    pages.check_integrity([one[0] for one in live])
    return seen


def test_sequences_of_one_size_are_one_call_also_in_a_full_pool() -> None:
    rng = random.Random(1)
    seen = unique(rng, lambda: rng.randrange(520, 544), 64, 1000)
    assert sum(seen) / len(seen) < 1.5


def test_sequences_of_many_sizes_are_a_few_calls_also_in_a_full_pool() -> None:
    rng = random.Random(2)
    seen = unique(rng, lambda: rng.randrange(100, 600), 128, 1000)
    assert sum(seen) / len(seen) < 8


def test_the_expected_length_follows_the_answers_not_the_limit() -> None:
    """Many requests name no limit: the rest of the context would give each of them a cell of that size."""
    pages = Pages(2113, PAGE, True)
    scheduler = Scheduler(pages, 4, 512, b"")
    expected = []
    for k in range(200):
        active = activate(request(f"r{k}", [k] * 100, 1900), None, k)
        scheduler.add(active)
        (work,) = scheduler.schedule()
        sequence = work.sequence
        expected.append(sequence.branch.expected)
        sequence.tokens += [7] * 120
        scheduler.finish(sequence)
        scheduler.finish(sequence)
    assert expected[0] == -(-2000 // PAGE)
    assert set(expected[1:]) == {-(-(100 + 240) // PAGE)}
