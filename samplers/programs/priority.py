"""Priority sampling: distinct completions in the order of the model's confidence, none of them drawn (Grubisic et al.,
arXiv 2402.18734; samplers.md section 9, whose keys and order are decided there).

Every token that greedy decoding passes over is a leaf of the tree of continuations. The leaf with the best key is
popped and completed greedily, which makes new leaves. Nothing that branches share is computed twice: a leaf grows on a
fork of the branch that passed it over, and that branch is kept while one of its leaves can still be popped.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from samplers.contract import Param, SamplerError
from samplers.model_facts import ModelFacts
from samplers.programs.branch import DEAD_END, Branch, End, Token
from samplers.programs.contract import PROGRAMS, BaseProgram, Run, Setting, Task
from samplers.programs.regex import State, compiled
from samplers.programs.rows import Rows
from samplers.programs.text import Text

MOST_CHOICES = 128
POPS_PER_CHOICE = 4  # leaves popped at most; some are dead ends or repeat a text
_STEPS = 2**16  # of keys, per nat


@PROGRAMS.register
class Priority(BaseProgram):
    """Choices are shown token by token as they grow. Those that may yet be dropped are shown when they are complete:
    with `dedupe: text`, and with a regex, which the request's other masks may leave without a token."""

    name = "priority"
    params = (
        Param("key", str, "local", choices=("local", "joint")),
        Param("branch_width", int, 16, low=2, high=2**31 - 1),
        Param("regex_renormalise", bool, False),
        Param("dedupe", str, "tokens", choices=("tokens", "text")),
        Param("parallel", int, 1, low=1, high=MOST_CHOICES),
    )
    structured = ("regex",)
    structured_defaults = MappingProxyType({"regex": None})

    def parse(self, field: str, value: Any, path: str, model: ModelFacts) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            raise SamplerError(f"'{path}' must be a string", path)
        compiled(value, model, path)
        return value

    def check(self, values: Mapping[str, Any], setting: Setting) -> None:
        super().check(values, setting)
        if setting.n > MOST_CHOICES:
            raise SamplerError(f"'priority' gives at most {MOST_CHOICES} choices, got {setting.n}", "n")
        if values["dedupe"] == "text" and setting.model.pieces is None:
            raise SamplerError("'dedupe' must be tokens here: the text of this model's tokens is not known", "dedupe")
        if values["regex_renormalise"] and values["regex"] is None:
            raise SamplerError("'regex_renormalise' needs a 'regex'", "regex_renormalise")

    def run(self, task: Task) -> Run:
        yield from _Search(task).run()


@dataclass(order=True, slots=True)
class _Leaf:
    """A token that was passed over. The least leaf is popped first."""

    rank: int  # of the key: -ln key in steps
    id: int
    age: int  # leaves made before it
    parent: Branch = field(compare=False)  # not released before this leaf is popped or given up
    depth: int = field(compare=False)  # the parent's tokens before it
    token: Token = field(compare=False)
    logq: float = field(compare=False)
    before: float = field(compare=False)  # ln of the product of q along the tokens before it


@dataclass(slots=True)
class _Growth:
    """A popped leaf on its way to be a choice."""

    branch: Branch
    joint: float  # ln of the product of q along its tokens
    state: State | None  # of the regex, after the branch's tokens
    details: dict[str, Any]
    number: int | None = None  # of the choice, once anything of it has been shown
    settled: bool = False  # its end has been shown, or it has been dropped

    def push(self, token: Token, logq: float) -> None:
        self.branch.push(token)
        self.joint += logq
        if self.state is not None and (self.branch.end is None or self.branch.end.token is None):
            self.state.advance([token.id])

    def end(self) -> End:
        """How it ends when no token can follow: rightly, if it matches and is not to be ended by a token."""
        limits = self.branch.limits
        whole = self.state is not None and self.state.accepting and len(self.branch) >= limits.min_tokens
        return End("stop") if whole and not limits.ending_ids else DEAD_END


class _Search:
    """One request."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.values = task.values
        regex = self.values["regex"]
        self.start = None if regex is None else compiled(regex, task.model, "regex")
        self.by_text = self.values["dedupe"] == "text"
        self.leaves: list[_Leaf] = []  # a heap
        self.parents: list[Branch] = []  # complete and not released
        self.made = self.pops = self.returned = self.dead_ends = 0
        self.texts: set[bytes] = set()  # of the choices, if no two may be the same

    def run(self) -> Run:
        batch = [self._grow(self.task.root, 0.0, 0, None)]
        while batch:
            yield from self._complete(batch)
            batch = self._pop()
        self.task.report.update(
            exhausted=not self.leaves,
            order="exact" if self.values["parallel"] == 1 else "approximate",
            pops=self.pops,
            dead_ends=self.dead_ends,
            duplicates=self.pops - self.returned - self.dead_ends if self.by_text else 0,
        )

    def _complete(self, batch: list[_Growth]) -> Run:
        """Grow all of a batch to their ends."""
        while live := [growth for growth in batch if growth.branch.end is None]:
            rows = yield [growth.branch for growth in live]
            for growth, candidates in zip(live, self._candidates(rows, live), strict=True):
                if candidates:
                    self._leave(growth, candidates[1:])
                    growth.push(*candidates[0])
                else:
                    growth.branch.end = growth.end()
            if self.start is None and not self.by_text:
                self._show(batch)
        self._show(batch)
        self.parents += [growth.branch for growth in batch]

    def _candidates(self, rows: Rows, live: list[_Growth]) -> list[list[tuple[Token, float]]]:
        """The best tokens after each branch, with their ln q."""
        width = self.values["branch_width"]
        if self.start is None:
            best, masses = rows.best(width), [0.0] * len(live)
        else:
            ending = self.task.limits.ending_ids
            vocab = rows.shaped.shape[1]
            states = [growth.state.allowed(vocab, ending) for growth in live if growth.state is not None]
            allowed = torch.stack(states).to(rows.shaped.device)
            best = rows.best(width, allowed)
            masses = rows.masses(allowed) if self.values["regex_renormalise"] else [0.0] * len(live)
        return [[(token, token.logq - mass) for token in row] for row, mass in zip(best, masses, strict=True)]

    def _leave(self, growth: _Growth, passed_over: list[tuple[Token, float]]) -> None:
        before, branch = growth.joint, growth.branch
        for token, logq in passed_over:
            key = before + logq if self.values["key"] == "joint" else logq
            leaf = _Leaf(round(-key * _STEPS), token.id, self.made, branch, len(branch), token, logq, before)
            heapq.heappush(self.leaves, leaf)
            self.made += 1

    def _pop(self) -> list[_Growth]:
        """Start on the best leaves; let go of those that cannot be popped any more, and of what only they need."""
        budget = POPS_PER_CHOICE * self.task.n - self.pops
        count = min(self.values["parallel"], self.task.n - self.returned, budget, len(self.leaves))
        batch = []
        for _ in range(count):
            leaf = heapq.heappop(self.leaves)
            growth = self._grow(leaf.parent.fork(), leaf.before, leaf.depth, -leaf.rank / _STEPS)
            growth.push(leaf.token, leaf.logq)
            batch.append(growth)
        if batch:
            self.leaves = heapq.nsmallest(budget - count + 1, self.leaves)  # the last only tells that there is more
            needed = {id(leaf.parent) for leaf in self.leaves}
            for branch in self.parents:
                if id(branch) not in needed:
                    branch.release()
            self.parents = [branch for branch in self.parents if not branch.released]
        return batch

    def _grow(self, branch: Branch, joint: float, depth: int, key: float | None) -> _Growth:
        branch.truncate(depth)
        details = {"pop_index": self.pops, "branch_depth": depth, "key": key}
        self.pops += 1
        return _Growth(branch, joint, None if self.start is None else self.start.copy().advance(branch.ids), details)

    def _show(self, batch: list[_Growth]) -> None:
        """Say what is known of each by now. Numbers are given in the order of popping, when anything is said at all."""
        for growth in batch:
            end = growth.branch.end
            if growth.settled:
                continue
            growth.settled = end is not None
            if growth.number is None:
                if end is DEAD_END:
                    self.dead_ends += 1
                    continue
                if self._is_duplicate(growth.branch):
                    continue
                growth.number = self.returned
                self.returned += 1
            self.task.show(growth.number, growth.branch, **(self._details(growth) if end else {}))

    def _details(self, growth: _Growth) -> dict[str, Any]:
        details = {**growth.details, "logprob": growth.branch.logprob}
        if growth.state is not None and not growth.state.accepting:
            details["incomplete"] = True
        return details

    def _is_duplicate(self, branch: Branch) -> bool:
        known = len(self.texts)
        if self.by_text:
            self.texts.add(self._text(branch))
        return self.by_text and len(self.texts) == known

    def _text(self, branch: Branch) -> bytes:
        """What a reader sees of a complete branch: up to what ended it."""
        limits = self.task.limits
        text = Text.of(branch.ids, branch.end, limits).data
        if branch.end is None or branch.end.reason != "stop" or branch.end.token is not None:
            return text
        # a stop ends in the last token's piece; what looks like one before it came too early to end the text
        since = len(text) - len(limits.piece(branch.ids[-1])) - max(map(len, limits.stops), default=1) + 1
        found = [at for stop in limits.stops if (at := text.find(stop, max(0, since))) >= 0]
        return text[: min(found, default=len(text))]
