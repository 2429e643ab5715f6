"""LLM tree search: roll-outs that leave the tree of the earlier ones where those were confident (arXiv 2410.19117).

The paper outlines a family without formulas; this is one member of it. PUCT as in AlphaZero, with the values scaled to
[0, 1] over the tree as in MuZero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from samplers.contract import Param, SamplerError
from samplers.model_facts import ModelFacts
from samplers.programs.branch import DEAD_END, Branch, Token
from samplers.programs.contract import PROGRAMS, BaseProgram, ProgramError, Run, Setting, Task
from samplers.programs.value import VALUE_FUNCTIONS, ValueFunction, value_of
from samplers.quantise import pick, quantise
from samplers.rng import Noise, Purpose


@PROGRAMS.register
class Tree(BaseProgram):
    """Every roll-out takes the best untried token at a selected node of the tree and decodes on to the end of the text.

    Candidates are the `candidates` best tokens of a node. A node's value is the best (`backup: max`) or mean value of
    the texts finished through it. `select: confidence` draws a node with weight exp(value / `tau`); `puct` descends
    from the root. `parallel` roll-outs are selected from the same tree and decoded together, so the tree depends on
    it; once no candidate is left, the texts do not. `budget_tokens` (0: none) begins no roll-out when so many tokens
    have been generated. The n best texts are returned, best first, when all is done.
    """

    name = "tree"
    params = (
        Param("budget", int, 16, low=1, high=1024),  # roll-outs
        Param("budget_tokens", int, 0, low=0),
        Param("candidates", int, 4, low=1),
        Param("tau", float, 1.0, low=0.0),
        Param("backup", str, "max", choices=("max", "mean")),
        Param("select", str, "confidence", choices=("confidence", "puct")),
        Param("c_puct", float, 1.0, low=0.0),
        Param("rollout", str, "greedy", choices=("greedy", "sample")),
        Param("parallel", int, 1, low=1, high=64),
    )
    structured = ("value",)
    structured_defaults = {"value": "confidence"}
    draws = frozenset({"iid", "gumbel"})
    default_temperature = 1.0

    def parse(self, field: str, value: Any, path: str, model: ModelFacts) -> Any:
        if value is None:
            return self.structured_defaults[field]
        if not isinstance(value, str):
            raise SamplerError(f"'{path}' must be the name of a value function", path)
        return VALUE_FUNCTIONS.get(value, path).name

    def check(self, values: Mapping[str, Any], setting: Setting) -> None:
        super().check(values, setting)
        if values["rollout"] == "greedy":
            if setting.temperature != 1 or "temperature" in setting.stages:
                raise SamplerError("'tree' with greedy roll-outs works at temperature 1 only", "temperature")
            if setting.draw != "iid":
                raise SamplerError(f"greedy roll-outs cannot be combined with the draw '{setting.draw}'", "draw")
        if values["budget"] < setting.n:
            raise SamplerError(f"'budget' must be at least n, {setting.n}", "budget")
        if values["select"] not in VALUE_FUNCTIONS.get(values["value"]).selects:
            raise SamplerError(f"'{values['value']}' values mean nothing to select '{values['select']}'", "value")

    def run(self, task: Task) -> Run:
        values = task.values
        function = VALUE_FUNCTIONS.get(values["value"])
        rows = yield [task.root]
        nodes = _Nodes(task.root, rows.best(values["candidates"])[0], values["backup"] == "mean", function)
        finished: list[_Rollout] = []
        begun = tokens = 0
        while nodes.open and begun < values["budget"] and not 0 < values["budget_tokens"] <= tokens:
            batch: list[_Rollout] = []
            while nodes.open and begun < values["budget"] and len(batch) < values["parallel"]:
                batch.append(nodes.begin(_select(nodes, task, begun), begun))
                begun += 1
            yield from _decode(batch, values["candidates"], values["rollout"] == "sample")
            for rollout in batch:
                tokens += len(rollout.branch) - rollout.start.depth
                if rollout.branch.end is not DEAD_END:
                    rollout.value = value_of(function, task, rollout.branch.tokens)
                    finished.append(rollout)
                nodes.add(rollout)
        if not finished:
            raise ProgramError("constraint_unsatisfiable", "the request's masks let no text come to an end")
        for choice, rollout in enumerate(sorted(finished, key=lambda one: -one.value)[: task.n]):
            end = rollout.branch.end
            assert end is not None
            task.finish(choice, rollout.branch.tokens, end, **rollout.details())
        task.report |= {"rollouts": begun, "tokens": tokens, "leaves": len(finished), "exhausted": not nodes.open}


@dataclass(eq=False, slots=True)
class _Node:
    """A prefix behind which the model's row is known."""

    index: int  # order of creation
    branch: Branch  # begins with the prefix
    depth: int  # tokens of the prefix
    untried: list[Token]  # of its best tokens, descending
    parent: _Node | None = None
    children: list[_Node] = field(default_factory=list)
    tried: int = 0  # tokens
    visits: int = 0  # roll-outs through it, those being decoded too
    finished: int = 0  # texts through it
    total: float = 0.0  # of their values
    best: float = -math.inf  # of their values
    open: int = 0  # nodes with untried tokens, of those at and below it

    @property
    def token(self) -> Token:
        """Its last one."""
        return self.branch.tokens[self.depth - 1]

    def lineage(self) -> Iterator[_Node]:
        """The node and all above it, upwards."""
        node: _Node | None = self
        while node is not None:
            yield node
            node = node.parent


@dataclass(eq=False, slots=True)
class _Rollout:
    """A branch that leaves the tree at `start`."""

    number: int
    branch: Branch
    start: _Node
    left: list[list[Token]] = field(default_factory=list)  # untried tokens of each node behind its first new token
    value: float = math.nan  # of its text; NaN: it came to no end

    def details(self) -> dict[str, Any]:
        """`visits` is the number of roll-outs through the node where this one left the tree."""
        return {
            "value": self.value,
            "logprob": self.branch.logprob,
            "branch_depth": self.start.depth,
            "visits": self.start.visits,
            "rollout": self.number,
        }


class _Nodes:
    """The tree. The last token of a text makes no node: nothing follows it."""

    def __init__(self, root: Branch, untried: list[Token], mean: bool, function: ValueFunction) -> None:
        self._mean = mean
        self._function = function
        self._nodes: list[_Node] = []
        self._values: list[float] = []  # of each node, to be selected by; -inf: nothing to try; NaN: not known
        self._held: dict[Branch, int] = {}  # nodes with untried tokens that continue from the memory of a branch
        self._low, self._high = math.inf, -math.inf  # values of texts
        self._root = self._grow(root, 0, untried, None)
        self._root.open = self._held[root] = int(bool(untried))
        self._revalue(self._root)

    @property
    def open(self) -> bool:
        """Whether there is anything to try."""
        return self._root.open > 0

    def by_value(self, tau: float, bits: npt.NDArray[np.int64]) -> _Node:
        """A node drawn with weight exp(value / tau); at 0 the best one, the oldest of equals. bits: [1]."""
        worst = self._low if self._low < math.inf else 0.0
        values = np.nan_to_num(np.array(self._values), nan=worst, neginf=-math.inf)
        if tau == 0:
            return self._nodes[values.argmax()]
        with np.errstate(over="ignore"):
            return self._nodes[pick(quantise((values - values.max())[None] / tau), bits)[0]]

    def by_puct(self, c: float) -> _Node:
        """Down from the root to the first node whose best untried token scores higher than all its children: Q + c P
        sqrt(N) / (1 + n), of equals the lowest token id. What nothing is known of has the Q of the worst text."""
        node = self._root
        while True:
            curiosity = c * math.sqrt(node.visits)
            options = [
                (
                    self._scaled(child) + curiosity * math.exp(child.token.logq) / (1 + child.visits),
                    -child.token.id,
                    child,
                )
                for child in node.children
                if child.open
            ]
            options += [(curiosity * math.exp(token.logq), -token.id, node) for token in node.untried[:1]]
            chosen = max(options, key=lambda option: option[:2])[2]
            if chosen is node:
                return node
            node = chosen

    def begin(self, node: _Node, number: int) -> _Rollout:
        """A roll-out from the node's best untried token."""
        token = node.untried.pop(0)
        rollout = _Rollout(number, node.branch.fork(node.tried, node.depth).push(token), node)
        node.tried += 1
        shut = int(not node.untried)
        for one in node.lineage():
            one.visits += 1
            one.open -= shut
        self._revalue(node)
        self._let_go(node.branch, shut)
        return rollout

    def add(self, rollout: _Rollout) -> None:
        """A decoded roll-out's nodes, and its text's value to all nodes it went through."""
        node = rollout.start
        for untried in rollout.left:
            node = self._grow(rollout.branch, node.depth + 1, untried, node)
        finished = not math.isnan(rollout.value)
        if finished:
            self._low, self._high = min(self._low, rollout.value), max(self._high, rollout.value)
        opened = 0
        for one in node.lineage():
            opened += one.branch is rollout.branch and bool(one.untried)
            one.open += opened
            if finished:
                one.finished += 1
                one.total += rollout.value
                one.best = max(one.best, rollout.value)
            self._revalue(one)
        self._held[rollout.branch] = opened
        self._let_go(rollout.branch, 0)

    def _grow(self, branch: Branch, depth: int, untried: list[Token], parent: _Node | None) -> _Node:
        node = _Node(len(self._nodes), branch, depth, untried, parent)
        if parent is not None:  # it was made by a roll-out that has gone on from it
            node.tried = node.visits = 1
            parent.children.append(node)
        self._nodes.append(node)
        self._values.append(math.nan)
        return node

    def _let_go(self, branch: Branch, count: int) -> None:
        """So many nodes fewer continue from the branch's memory."""
        self._held[branch] -= count
        if not self._held[branch]:
            branch.release()

    def _backed_up(self, node: _Node) -> float:
        if not node.finished:
            return math.nan
        return node.total / node.finished if self._mean else node.best

    def _revalue(self, node: _Node) -> None:
        value = self._function.of_node(self._backed_up(node), node.untried[0]) if node.untried else -math.inf
        self._values[node.index] = value

    def _scaled(self, node: _Node) -> float:
        """The node's value in [0, 1], between those of the worst and the best text."""
        if not node.finished or self._high == self._low:
            return 0.0
        return (self._backed_up(node) - self._low) / (self._high - self._low)


def _select(nodes: _Nodes, task: Task, number: int) -> _Node:
    if task.values["select"] == "puct":
        return nodes.by_puct(task.values["c_puct"])
    key, choice = task.stream
    noise = Noise(np.array([key]), np.array([choice]), np.array([number]))
    return nodes.by_value(task.values["tau"], noise.bits(Purpose.TREE))


def _decode(batch: Sequence[_Rollout], k: int, sample: bool) -> Run:
    """All roll-outs to their ends, one token of each per pass."""
    while live := [rollout for rollout in batch if rollout.branch.end is None]:
        rows = yield [rollout.branch for rollout in live]
        best = rows.best(k)
        taken = rows.draws() if sample else [row[0] if row else None for row in best]
        for rollout, row, token in zip(live, best, taken, strict=True):
            if token is None:
                rollout.branch.end = DEAD_END
            else:
                rollout.left.append([one for one in row if one.id != token.id])
                rollout.branch.push(token)
