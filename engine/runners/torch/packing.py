"""Packs the chunks of a step into one ragged row of tokens.

Chunks that share leading pages become neighbours, the more pages the closer, so that a common prefix is attended to
once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from engine.pages import Branch, Pages
from engine.runners.torch.step import Group, Span, Step


@dataclass(frozen=True)
class Chunk:
    """Tokens of one branch to compute, perhaps behind scratch rows; their slots are reserved in `branch.length`."""

    branch: Branch
    context: int  # tokens cached before
    tokens: Sequence[int]  # input ids
    tree: np.ndarray | None = None  # bool [n, width], ancestor or self among scratch rows and these; None: causal
    depths: np.ndarray | None = None  # int64 [width]; position = context + depth; given with `tree`


def pack(pages: Pages, chunks: list[Chunk], rows: list[int], device: torch.device) -> Step:
    """The step that computes `chunks` in this order; `rows` of the packed row get logits."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[np.ndarray | list[int]] = []
    spans: list[Span] = []
    for chunk in chunks:
        count, context = len(chunk.tokens), chunk.context
        length = context + (count if chunk.tree is None else chunk.tree.shape[1])
        runs = tuple(pages.runs(chunk.branch, 0, length))
        span = Span(len(ids), count, context, runs, chunk.tree, chunk.depths)
        spans.append(span)
        ids += chunk.tokens
        if span.is_decode:
            positions.append(context)
            slots.append([runs[-1][1] - 1])
        else:
            positions += span.positions.tolist()
            slots.append(pages.slots(chunk.branch, length - count, count))
    packed = torch.from_numpy(np.stack([np.array(ids), np.array(positions), np.concatenate(slots)]).astype(np.int64))
    packed = packed.to(device, non_blocking=True)
    logit_rows = torch.tensor(rows, dtype=torch.int64, device=device)
    return Step(packed[0], packed[1], packed[2], logit_rows, spans, _groups(pages, chunks))


def order(branches: Sequence[Branch]) -> list[int]:
    """The order of their page tables, in which branches with a common beginning are neighbours."""
    return sorted(range(len(branches)), key=lambda i: branches[i].pages)


def _groups(pages: Pages, chunks: list[Chunk]) -> list[Group]:
    """Neighbours that share whole leading pages of their context, chosen so that few keys are read twice."""
    groups: list[Group] = []
    first = 0
    while first < len(chunks):
        page = chunks[first].branch.pages[0]
        last = first + 1
        while last < len(chunks) and chunks[last].branch.pages[0] == page:
            last += 1
        if last - first > 1:
            shared = tuple(_shared_by_neighbours(pages, chunks[first:last]))
            for start, count, common in _partition(shared):
                groups.append(Group(first + start, count, common * pages.page_size))
        first = last
    return groups


def _shared_by_neighbours(pages: Pages, family: list[Chunk]) -> list[int]:
    """For each neighbouring pair of chunks in order: how many leading pages of their contexts are the same."""
    whole = [chunk.context // pages.page_size for chunk in family]
    tables = [chunk.branch.pages for chunk in family]
    least = pages.shared_pages([family[0].branch, family[-1].branch])  # in order: what these share is shared by all
    shared = []
    for i in range(len(family) - 1):
        a, b, n = tables[i], tables[i + 1], least
        most = min(whole[i], whole[i + 1])
        while n < most and a[n] == b[n]:
            n += 1
        shared.append(min(n, most))
    return shared


@lru_cache(maxsize=64)  # changes only when a sequence comes or goes
def _partition(shared: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """(first chunk, number of chunks, common pages) of the groups that save most; `shared`: by neighbouring pair.

    A group of k chunks with p pages in common saves (k - 1) * p.
    """
    bars = np.array(shared)
    widths = np.arange(1, len(bars) + 1)
    saved = np.zeros(len(bars) + 2, np.int64)  # by the first so many chunks
    last: list[tuple[int, int, int] | None] = [None, None]  # the group that ends with them, if any
    for end in range(2, len(bars) + 2):
        least = np.minimum.accumulate(bars[end - 2 :: -1])  # pages in common of the last 2, 3, ... chunks
        gains = saved[end - 2 :: -1] + least * widths[: end - 1]
        most = int(gains.argmax())
        saved[end] = max(gains[most], saved[end - 1])
        group = (end - 2 - most, most + 2, int(least[most]))
        last.append(group if saved[end] > saved[end - 1] else None)
    groups, end = [], len(bars) + 1
    while end > 1:
        if (found := last[end]) is None:
            end -= 1
        else:
            groups.append(found)
            end = found[0]
    return tuple(reversed(groups))
