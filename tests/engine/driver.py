"""Runs steps over a tiny model without scheduler or sampler: branches, chunks and trees in, logits out."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from engine.pages import Branch, Pages
from engine.runners.torch.attention_cpu import CpuAttention
from engine.runners.torch.attention_gather import GatherAttention
from engine.runners.torch.attention_plain import PlainAttention
from engine.runners.torch.forward import Forward
from engine.runners.torch.loader import check
from engine.runners.torch.packing import Chunk, order, pack
from engine.runners.torch.pool import KvPool
from engine.settings import EngineSettings

PAGE = 4


@dataclass(eq=False)
class Line:
    """One sequence: all its tokens, of which `computed` are cached."""

    branch: Branch
    tokens: list[int] = field(default_factory=list)
    computed: int = 0


class Driver:
    """A tiny engine without policy.

    attention: cpu (eager), replay (as Python), script, blocks (as script, only single rows are lanes), gather, plain.
    """

    def __init__(self, model: nn.Module, attention: str = "cpu", num_pages: int = 128) -> None:
        model = copy.deepcopy(model)  # replay re-points parameters
        self.reference = copy.deepcopy(model)
        self.reference.set_attn_implementation("eager")
        self.loaded = check(model, EngineSettings())
        self.pages = Pages(num_pages, PAGE, contiguous=True)
        self.pool = KvPool(self.loaded.layers, num_pages, PAGE, self.loaded.dtype, self.loaded.device)
        kinds = {"plain": PlainAttention, "gather": GatherAttention, "blocks": partial(CpuAttention, lane_rows=1)}
        self.forward = Forward(self.loaded.model, kinds.get(attention, CpuAttention)(self.pool))
        replayed = attention in ("replay", "script", "blocks") and self.forward.use_replay(self.loaded.layers)
        if replayed and attention == "replay":
            self.forward.program.script = None
        self.lines: list[Line] = []

    def line(self, tokens: list[int]) -> Line:
        line = Line(self.pages.new_branch(), list(tokens))
        self.lines.append(line)
        return line

    def fork(self, line: Line) -> Line:
        child = Line(self.pages.fork(line.branch), list(line.tokens), line.computed)
        self.lines.append(child)
        return child

    def truncate(self, line: Line, length: int) -> None:
        self.pages.truncate(line.branch, length)
        line.tokens, line.computed = line.tokens[:length], min(line.computed, length)

    @torch.inference_mode()
    def step(self, *shares: tuple[Line, int]) -> dict[Line, Tensor]:
        """Compute the next `count` tokens of every line; returns their logits [count, V]."""
        for line, count in shares:
            self.pages.append(line.branch, count)
        parts = [
            (line, Chunk(line.branch, line.computed, line.tokens[line.computed : line.computed + count]))
            for line, count in shares
        ]
        result = self.run(parts)
        for line, count in shares:
            line.computed += count
        return result

    @torch.inference_mode()
    def tree(self, line: Line, tokens: list[int], parents: list[int]) -> Tensor:
        """Compute a tree in scratch slots: row 0 is its root. parents[0] is -1. Returns logits [n, V]."""
        return self.trees((line, tokens, parents, 0))[line]

    @torch.inference_mode()
    def trees(self, *shares: tuple[Line, list[int], list[int], int]) -> dict[Line, Tensor]:
        """Compute, for each (line, tokens, parents, grown), the rows of a tree behind the first `grown` of them, which
        earlier calls have computed. Returns logits [n - grown, V]."""
        parts = []
        for line, tokens, parents, grown in shares:
            seen, depths = ancestors(parents)
            self.pages.append(line.branch, len(tokens) - grown)
            parts.append((line, Chunk(line.branch, line.computed, tokens[grown:], seen[grown:], depths)))
        return self.run(parts)

    @torch.inference_mode()
    def compact(self, line: Line, tokens: list[int], accepted: list[int]) -> None:
        """Keep the accepted rows of the tree just computed."""
        source, target = self.pages.compact_slots(line.branch, line.computed, accepted)
        if len(source):
            self.pool.move(torch.from_numpy(source), torch.from_numpy(target))
        self.pages.truncate(line.branch, line.computed + len(accepted))
        line.tokens = line.tokens[: line.computed] + [tokens[i] for i in accepted]
        line.computed = len(line.tokens)

    @torch.inference_mode()
    def run(self, parts: list[tuple[Line, Chunk]]) -> dict[Line, Tensor]:
        """Logits of all rows of these chunks, whose slots are reserved."""
        copies = self.pages.drain_copies()
        if copies:
            self.pool.copy_pages(copies)
        parts = [parts[i] for i in order([chunk.branch for _, chunk in parts])]
        chunks = [chunk for _, chunk in parts]
        total = sum(len(chunk.tokens) for chunk in chunks)
        logits = self.forward(pack(self.pages, chunks, list(range(total)), torch.device("cpu")))
        self.pages.check_integrity([line.branch for line in self.lines])
        return dict(zip([line for line, _ in parts], logits.split([len(c.tokens) for c in chunks]), strict=True))

    @torch.inference_mode()
    def eager(self, tokens: list[int]) -> Tensor:
        """Logits [n, V] of the model's own eager attention."""
        return self.reference(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def ancestors(parents: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(ancestor-or-self matrix [n, n], depth of each row, the root at 0)."""
    count = len(parents)
    seen, depths = np.eye(count, dtype=bool), np.zeros(count, np.int64)
    for row, parent in enumerate(parents):
        if parent >= 0:
            seen[row] |= seen[parent]
            depths[row] = depths[parent] + 1
    return seen, depths


def path(parents: list[int], row: int) -> list[int]:
    """Rows from the root to `row`."""
    rows = [row]
    while parents[rows[0]] >= 0:
        rows.insert(0, parents[rows[0]])
    return rows
