"""Forward passes of a draft model: over tokens that have been committed, then over the nodes of growing trees."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from engine.runners.torch.draft_head import DraftHead
from engine.runners.torch.draft_slot import DraftSlot
from engine.runners.torch.packing import Chunk, order
from engine.runners.torch.paged_model import PagedModel


class DraftPasses:
    """All slots together, in several passes where one would be too long."""

    def __init__(self, model: PagedModel, slots: Mapping[int, DraftSlot], max_rows: int) -> None:
        """slots: as they are whenever something is computed; max_rows: of one pass."""
        self._model = model
        self._slots = slots
        self._max_rows = max_rows

    def roots(self, head: DraftHead, slots: Sequence[int]) -> Tensor:
        """[P, V] behind the committed tokens of these slots, whose KV is complete then."""
        chunks, wanted, room = [], [], self._max_rows
        for slot in slots:
            missing = self._slots[slot].missing
            while missing:
                count = min(missing, room)
                missing -= count
                room = room - count or self._max_rows
                chunks.append(self._slots[slot].chunk(count))
                wanted.append(0 if missing else 1)
        return self._logits(head, chunks, wanted)

    def prefix(self, head: DraftHead, slot: int, count: int) -> None:
        """Compute so many more tokens of a slot, for others to share. Raises OutOfPages."""
        while count:
            size = min(count, self._max_rows)
            self._logits(head, [self._slots[slot].extend(size)], [1])
            count -= size

    def nodes(self, head: DraftHead, nodes: Sequence[tuple[int, int]]) -> Tensor:
        """[P, V] behind these nodes (slot, node), which come slot by slot."""
        chunks = [
            self._slots[slot].draft_chunk([node for _, node in own])
            for slot, own in itertools.groupby(nodes, key=lambda pair: pair[0])
        ]
        return self._logits(head, chunks, [len(chunk.tokens) for chunk in chunks])

    def _logits(self, head: DraftHead, chunks: Sequence[Chunk], wanted: Sequence[int]) -> Tensor:
        """[R, V] of the last `wanted` rows of each chunk."""
        ends = list(itertools.accumulate(len(chunk.tokens) for chunk in chunks))
        if ends[-1] <= self._max_rows:
            return self._pass(head, chunks, wanted)
        found, first = [], 0
        while first < len(chunks):
            before = ends[first - 1] if first else 0
            last = max(bisect_right(ends, before + self._max_rows), first + 1)
            found.append(self._pass(head, chunks[first:last], wanted[first:last]))
            first = last
        return torch.cat(found)

    def _pass(self, head: DraftHead, chunks: Sequence[Chunk], wanted: Sequence[int]) -> Tensor:
        by_pages = order([chunk.branch for chunk in chunks])
        ends = dict(zip(by_pages, itertools.accumulate(len(chunks[at].tokens) for at in by_pages), strict=True))
        rows = [row for at, count in enumerate(wanted) for row in range(ends[at] - count, ends[at])]
        return head(self._model.pack([chunks[at] for at in by_pages], rows))
