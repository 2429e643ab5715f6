"""Packs the chunks of a step into one ragged row of tokens.

Chunks that share their first page become neighbours, so that a common prefix is attended to once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.pages import Branch, Pages
from engine.runners.torch.step import Group, Span, Step


@dataclass(frozen=True)
class Chunk:
    """Tokens of one branch to compute; slots for them are already reserved (`branch.length` covers them)."""

    branch: Branch
    context: int  # tokens cached before
    tokens: Sequence[int]
    tree: np.ndarray | None = None  # bool [n, n], ancestor or self
    depths: np.ndarray | None = None  # int64 [n]; position = context + depth


def pack(pages: Pages, chunks: list[Chunk], rows: list[int], device: torch.device) -> Step:
    """The step that computes `chunks` in this order; `rows` of the packed row get logits."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[np.ndarray | list[int]] = []
    spans: list[Span] = []
    for chunk in chunks:
        count, context = len(chunk.tokens), chunk.context
        runs = tuple(pages.runs(chunk.branch, 0, context + count))
        spans.append(Span(len(ids), count, context, runs, chunk.tree, chunk.depths))
        ids += chunk.tokens
        if count == 1 and chunk.tree is None:
            positions.append(context)
            slots.append([runs[-1][1] - 1])
        else:
            depths = np.arange(count) if chunk.depths is None else chunk.depths
            positions += (context + depths).tolist()
            slots.append(pages.slots(chunk.branch, context, count))
    packed = torch.from_numpy(np.stack([np.array(ids), np.array(positions), np.concatenate(slots)]).astype(np.int64))
    packed = packed.to(device, non_blocking=True)
    logit_rows = torch.tensor(rows, dtype=torch.int64, device=device)
    return Step(packed[0], packed[1], packed[2], logit_rows, spans, _groups(pages, chunks))


def order(branches: Sequence[Branch]) -> list[int]:
    """A stable order in which branches with a common first page are neighbours."""
    return sorted(range(len(branches)), key=lambda i: branches[i].pages[0])


def _groups(pages: Pages, chunks: list[Chunk]) -> list[Group]:
    """Neighbours that share whole leading pages of their context."""
    groups = []
    first = 0
    while first < len(chunks):
        page = chunks[first].branch.pages[0]
        last = first + 1
        while last < len(chunks) and chunks[last].branch.pages[0] == page:
            last += 1
        if last - first > 1:
            members = chunks[first:last]
            shared = pages.shared_pages([chunk.branch for chunk in members])
            whole = min(chunk.context for chunk in members) // pages.page_size
            length = min(shared, whole) * pages.page_size
            if length:
                groups.append(Group(first, last - first, length))
        first = last
    return groups
