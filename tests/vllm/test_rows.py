"""Rows of logits through shared memory. Needs no vLLM."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.runners.vllm.row_block import Place, RowBlock, opened
from engine.runners.vllm.row_inbox import RowInbox

VOCAB, SLOTS = 50, 3


@pytest.fixture
def inbox() -> Iterator[RowInbox]:
    with contextlib.closing(RowInbox(SLOTS, VOCAB)) as inbox:
        yield inbox


@pytest.fixture
def block(inbox: RowInbox) -> RowBlock:
    """As another process has it."""
    return opened(inbox.path, SLOTS, VOCAB)


def rows(seed: int) -> tuple[Tensor, Tensor]:
    raw, shaped = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(seed))
    shaped[::3] = -torch.inf
    return raw, shaped


def test_they_arrive_as_they_were(inbox: RowInbox, block: RowBlock) -> None:
    async def run() -> None:
        places = [await inbox.take() for _ in range(SLOTS)]
        for place in places:
            assert inbox.read(place) is None
            block.write(place, *rows(place.slot), place.slot - 1)
        for place in places:
            found, (raw, shaped) = inbox.read(place), rows(place.slot)
            assert found is not None and torch.equal(found.raw, raw) and torch.equal(found.shaped, shaped)
            assert found.drawn == place.slot - 1

    asyncio.run(run())


def test_a_row_that_was_read_is_not_written_to(inbox: RowInbox, block: RowBlock) -> None:
    block.write(Place(0, 1), *rows(1), 5)
    found = inbox.read(Place(0, 1))
    block.write(Place(0, 2), *rows(2), 6)
    assert found is not None and torch.equal(found.raw, rows(1)[0])


def test_late_rows_are_told_from_those_that_are_waited_for(inbox: RowInbox, block: RowBlock) -> None:
    async def run() -> None:
        given_up = await inbox.take()
        inbox.give_back(given_up)
        place = await inbox.take()
        assert place.slot == given_up.slot
        block.write(place, *rows(1), 1)
        block.write(given_up, *rows(2), 2)
        assert inbox.read(place) is None

    asyncio.run(run())


def test_rows_wait_for_a_slot(inbox: RowInbox) -> None:
    async def run() -> None:
        places = [await inbox.take() for _ in range(SLOTS)]
        waiting = asyncio.ensure_future(inbox.take())
        await asyncio.sleep(0)
        assert not waiting.done() and inbox.free == 0
        inbox.give_back(places[1])
        assert (await waiting).slot == places[1].slot

    asyncio.run(run())


def test_nothing_is_left_of_it(inbox: RowInbox) -> None:
    other = RowInbox(1, VOCAB)
    path = other.path
    assert Path(path).exists()
    other.close()
    with pytest.raises(OSError):
        opened(path, 1, VOCAB)
