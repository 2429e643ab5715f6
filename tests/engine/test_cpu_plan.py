"""Plans of CPU steps: every row sees what the visibility rule says, each slot once, in few calls."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from engine.pages import Branch, Pages
from engine.runners.torch import cpu_plan
from engine.runners.torch.cpu_plan import LANE_ROWS, Lanes, Plan, make_plan
from engine.runners.torch.layers import LayerSpec
from engine.runners.torch.packing import Chunk, order, pack
from engine.runners.torch.step import Step
from tests.engine.driver import ancestors

PAGE, NUM_PAGES = 4, 200
SLOTS = PAGE * NUM_PAGES
GROUP = 2


def spec(window: int | None = None, chunk: int | None = None) -> LayerSpec:
    return LayerSpec(2 * GROUP, 2, 16, 16, 0.25, window, chunk)


def step_of(pages: Pages, chunks: list[Chunk]) -> Step:
    chunks = [chunks[i] for i in order([chunk.branch for chunk in chunks])]
    return pack(pages, chunks, [0], torch.device("cpu"))


def seen_by_plan(plan: Plan, step: Step) -> list[list[int]]:
    """Per row the slots it attends to, once for every time; all query heads of a KV head see the same."""
    seen: list[list[int]] = [[] for _ in range(plan.rows)]
    for part in (part for cover in plan.covers for part in cover):
        rows = np.arange(plan.rows)[part.rows]
        if isinstance(part, Lanes):
            assert len(rows) == part.count * part.height
            assert part.start + (part.count - 1) * part.stride + part.length <= SLOTS
            mask = torch.zeros(1) if part.mask is None else part.mask[:, 0]
            mask = mask.expand(part.count, part.height * GROUP, part.length).reshape(-1, GROUP, part.length)
            assert all(torch.equal(mask[:, 0], mask[:, head]) for head in range(GROUP))
            for i, row in enumerate(rows):
                first = part.start + i // part.height * part.stride
                seen[row] += (first + (mask[i, 0] == 0).nonzero()[:, 0]).tolist()
        else:
            allowed = torch.ones(len(rows), len(rows)).tril() if part.mask is None else part.mask == 0
            for i, row in enumerate(rows):
                seen[row] += step.slots[rows][allowed[i].bool()].tolist()
    return seen


def seen_by_rule(step: Step, layer: LayerSpec) -> list[list[int]]:
    seen = []
    for span in step.spans:
        slots = [slot for run in span.runs for slot in range(*run)]
        depths = list(range(span.count)) if span.depths is None else span.depths.tolist()
        positions = [*range(span.context), *(span.context + depth for depth in depths)]
        for row in range(span.count):
            own = span.context + span.width - span.count + row
            behind = range(row + 1) if span.tree is None else span.tree[row].nonzero()[0].tolist()
            tokens = [*range(span.context), *(span.context + i for i in behind)]
            seen.append([slots[i] for i in tokens if positions[i] >= layer.first_visible(positions[own])])
    return seen


def some_chunk(rng: random.Random, pages: Pages, branch: Branch) -> Chunk:
    """A single row, a chain or a tree behind what the branch holds, perhaps with scratch rows before it."""
    context, count = branch.length, rng.choice([1, 1, 3, 5, 5, rng.randrange(1, 12)])
    if rng.random() < 0.5:
        pages.append(branch, count)
        return Chunk(branch, context, [7] * count)
    scratch = rng.choice([0, rng.randrange(6)])
    parents = [-1, *(rng.randrange(i) for i in range(1, count + scratch))]
    seen, depths = ancestors(parents)
    mixed = rng.sample(range(count + scratch), count + scratch)  # nothing asks for parents before their children
    pages.append(branch, count + scratch)
    return Chunk(branch, context, [7] * count, seen[mixed][scratch:, mixed], depths[mixed])


@pytest.mark.parametrize("most", [2**16, 40])
@pytest.mark.parametrize("lane_rows", [LANE_ROWS, 4, 1])
def test_every_row_sees_each_slot_of_the_rule_once(lane_rows: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_plan, "_LANE_MASK", most)
    rng = random.Random(lane_rows)
    for i in range(60):
        longest = (6, 25)[i % 2]  # tokens
        pages = Pages(NUM_PAGES, PAGE, True)
        branches: list[Branch] = []
        while len(branches) < rng.randrange(1, 8):
            if branches and rng.random() < 0.5:
                branches.append(pages.fork(rng.choice(branches)))
            else:
                branches.append(pages.new_branch(b"", rng.choice([0, 40])))
            pages.append(branches[-1], rng.randrange(1, longest))
        step = step_of(pages, [some_chunk(rng, pages, branch) for branch in branches])
        for layer in (spec(), spec(window=1), spec(window=6), spec(chunk=4)):
            plan = make_plan(step, layer, SLOTS, lane_rows)
            assert [sorted(slots) for slots in seen_by_plan(plan, step)] == [
                sorted(slots) for slots in seen_by_rule(step, layer)
            ]


def chains(rows: list[int], contexts: list[int], expected: int) -> tuple[Pages, list[Chunk]]:
    pages, chunks = Pages(NUM_PAGES, PAGE, True), []
    for count, context in zip(rows, contexts, strict=True):
        branch = pages.new_branch(b"", expected)
        pages.append(branch, context + count)
        chunks.append(Chunk(branch, context, [7] * count))
    return pages, chunks


def test_chains_of_one_height_are_one_call() -> None:
    pages, chunks = chains([5] * 6, [40, 43, 41, 60, 52, 47], 68)
    plan = make_plan(step_of(pages, chunks), spec(), SLOTS).as_lanes()
    assert [(count, height) for count, height, *_ in plan.lanes] == [(6, 5)]
    assert plan.rows[0].numel() == 0 and plan.covers == [1]


def test_heights_are_calls_of_their_own() -> None:
    pages, chunks = chains([5, 1, 5, 1, 5, 1], [40, 43, 41, 60, 52, 47], 68)
    plan = make_plan(step_of(pages, chunks), spec(), SLOTS).as_lanes()
    assert sorted((count, height) for count, height, *_ in plan.lanes) == [(3, 1), (3, 5)]


def test_choices_that_speculate_share_the_call_for_their_prompt() -> None:
    pages = Pages(NUM_PAGES, PAGE, True)
    trunk = pages.new_branch(b"", 60)
    pages.append(trunk, 40)
    branches = [trunk, pages.fork(trunk), pages.fork(trunk)]
    for branch in branches:
        pages.append(branch, 5)
    plan = make_plan(step_of(pages, [Chunk(branch, 40, [7] * 5) for branch in branches]), spec(), SLOTS).as_lanes()
    assert plan.lanes[0] == [1, 15, trunk.pages[0] * PAGE, 0, 40] and plan.masks[0].numel() == 0
    assert sum(count * height for count, height, *_ in plan.lanes[1:]) == 15
    assert all(length <= 8 for *_, length in plan.lanes[1:])


def test_a_lane_with_a_large_mask_has_none_over_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_plan, "_LANE_MASK", 5 * GROUP * 45 - 1)
    pages, chunks = chains([5, 5], [40, 40], 60)
    plan = make_plan(step_of(pages, chunks), spec(), SLOTS).as_lanes()
    assert [lane[-1] for lane in plan.lanes] == [40, 5]
    assert [mask.numel() for mask in plan.masks] == [0, 2 * 5 * GROUP * 5]
