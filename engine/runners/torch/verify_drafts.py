"""Judges the drafts of a step: from the logits of their rows to accepted paths and the tokens that follow them.

Every row is shaped as plain decoding would shape it, with the sampler's state advanced along the path to its node
(spec_decode.md 3.1). Afterwards each state has accepted exactly the tokens that were drawn.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import spec_decode.verify  # noqa: F401  registers the rules
from engine.runners.torch.paged_model import lost_rows
from engine.sequence import Sequence as Choice
from samplers.failures import CONSTRAINT_UNSATISFIABLE, Failures
from samplers.memories import Snapshot
from samplers.rng import Noise
from samplers.stack import SamplerStack
from spec_decode.contract import VERIFIERS, DraftTree, Verdict
from spec_decode.request import SpecRequest
from spec_decode.verify.batch import ROOT, DraftBatch

log = logging.getLogger(__name__)
MATCH = "match"
AT_ONCE = 32  # rows to draw from: of more, only those that are reached
Ints = npt.NDArray[np.int64]


@dataclass(eq=False, slots=True)
class Drafted:
    """A sequence with a draft in this step."""

    sequence: Choice
    tree: DraftTree
    root: int  # the row of the pending token in the step's logits; node i has the i-th row after it

    @property
    def slot(self) -> int:
        assert self.sequence.slot is not None
        return self.sequence.slot

    @property
    def request(self) -> SpecRequest:
        assert self.sequence.active.request.speculation is not None
        return self.sequence.active.request.speculation

    def row(self, place: int) -> int:
        """place: a node, or -1 for the root."""
        return self.root + 1 + place


@dataclass(slots=True)
class Judged:
    """What became of a draft."""

    drafted: Drafted
    path: list[int] = field(default_factory=list)  # accepted nodes
    tokens: list[int] = field(default_factory=list)  # theirs, and the one that follows unless there is a failure
    shaped: list[tuple[Tensor, int]] = field(default_factory=list)  # (rows [R, V] after the stages, which), per token
    failure: tuple[str, str] | None = None  # (code, message): why nothing follows
    repaired: int = 0  # residuals that rounding has left without mass
    spoilt: bool = False  # the model had no numbers for a row of the draft, accepted or not

    @property
    def rows(self) -> list[int]:
        """Of the step's logits, one per token."""
        return [self.drafted.row(place) for place in (ROOT, *self.path)][: len(self.tokens)]

    def cut(self, count: int, why: tuple[str, str]) -> None:
        """Nothing follows the first `count` tokens."""
        self.failure = why
        del self.tokens[count:], self.shaped[count:], self.path[count:]


class DraftJudge:
    """Works on one stack of samplers."""

    def __init__(self, stack: SamplerStack) -> None:
        self._stack = stack

    def judge(self, logits: Tensor, drafted: Sequence[Drafted]) -> list[Judged]:
        """logits: [R, V] fp32, the rows of all drafts among them. In the order of `drafted`."""
        ruled = [one for one in drafted if one.request.verifier != MATCH]
        matched = [one for one in drafted if one.request.verifier == MATCH]
        drawing = [one for one in matched if not one.sequence.active.request.chain.greedy]
        few = sum(1 + len(one.tree.tokens) for one in drawing) <= AT_ONCE
        at_once = [one for one in matched if not self._stack.remembers(one.slot) and (few or one not in drawing)]
        walked = [one for one in matched if one not in at_once]
        judged = {
            id(one.drafted): one
            for part, of in ((walked, self._walk), (at_once, self._match), (ruled, self._verify))
            if part
            for one in of(logits, part)
        }
        found = [judged[id(one)] for one in drafted]
        lost = lost_rows(logits)
        if bool(lost.any()):
            for one in found:
                one.spoilt = bool(lost[one.drafted.root :][: 1 + len(one.drafted.tree.tokens)].any())
        return found

    # --- sample and compare

    def _match(self, logits: Tensor, drafted: list[Drafted]) -> list[Judged]:
        """Draws from all rows, whichever of them will be reached. What the rule `match` does with them is a few
        comparisons per request, made here."""
        rows, slots, positions, starts = _laid_out(drafted)
        sampled = self._stack.sample(_rows(logits, rows), slots, positions)
        drawn = sampled.tokens.tolist()
        judged = []
        for one, start in zip(drafted, starts.tolist(), strict=True):
            children, path, place = _children(one.tree), [], ROOT
            while start + 1 + place not in sampled.failures:
                child = children.get((place, drawn[start + 1 + place]))
                if child is None:
                    break
                path.append(child)
                place = child
            judged.append(_judged(one, path, drawn[start + 1 + place], sampled.processed, start, sampled.failures))
        return judged

    def _walk(self, logits: Tensor, drafted: list[Drafted]) -> list[Judged]:
        """Draws token by token, each request along its own path: what a state has accepted stays accepted."""
        judged = [Judged(one) for one in drafted]
        children = [_children(one.tree) for one in drafted]
        active = list(range(len(drafted)))
        while active:
            here = [judged[at] for at in active]
            rows = [one.drafted.row(one.path[-1] if one.path else ROOT) for one in here]
            slots = np.array([one.drafted.slot for one in here])
            positions = np.array([one.drafted.sequence.position + len(one.path) for one in here])
            sampled = self._stack.sample(_rows(logits, rows), slots, positions)
            failures = self._accept(slots, sampled.tokens, sampled.failures)
            tokens = sampled.tokens.tolist()
            going = []
            for row, (at, one) in enumerate(zip(active, here, strict=True)):
                if row in failures:
                    one.failure = failures[row]
                    continue
                one.tokens.append(tokens[row])
                one.shaped.append((sampled.processed, row))
                child = children[at].get((one.path[-1] if one.path else ROOT, tokens[row]))
                if child is not None:
                    one.path.append(child)
                    going.append(at)
            active = going
        return judged

    def _accept(self, slots: Ints, tokens: Tensor, failed: Failures) -> Failures:
        """Commit the tokens of rows that have not failed; all failures."""
        whole = [row for row in range(len(slots)) if row not in failed]
        if not whole:
            return failed
        mine, own = (slots, tokens) if len(whole) == len(slots) else (slots[whole], tokens[whole])
        more = self._stack.accept(mine, own)
        return failed if not more else {**failed, **{whole[row]: why for row, why in more.items()}}

    # --- other rules

    def _verify(self, logits: Tensor, drafted: list[Drafted]) -> list[Judged]:
        law = _Law(self._stack, logits, drafted)
        p, failures = law.shaped.softmax(1), law.failures
        trees, roots = [one.tree for one in drafted], law.starts.copy()
        kept: list[list[int] | None] = [None] * len(drafted)
        for b, one in enumerate(drafted):
            if failures.keys() & set(range(int(roots[b]), int(roots[b]) + 1 + len(one.tree.tokens))):
                nodes = _reachable(one.tree, int(roots[b]), failures)
                own = torch.tensor([0, *(1 + node for node in nodes)], device=p.device) + int(roots[b])
                kept[b], trees[b], roots[b] = nodes, one.tree.part(nodes), len(p)
                p = torch.cat([p, p[own].nan_to_num(0.0)])
        judged: dict[int, Judged] = {}
        for rule in dict.fromkeys(one.request.verifier for one in drafted):
            members = [b for b, one in enumerate(drafted) if one.request.verifier == rule]
            judged |= self._ruled(rule, members, drafted, trees, roots, p, law, kept)
        found = [judged[b] for b in range(len(drafted))]
        self._commit(found)
        return found

    def _ruled(
        self,
        rule: str,
        members: list[int],
        drafted: list[Drafted],
        trees: list[DraftTree],
        roots: Ints,
        p: Tensor,
        law: _Law,
        kept: list[list[int] | None],
    ) -> dict[int, Judged]:
        """By index of `drafted`, without their tokens being accepted."""
        batch = DraftBatch.of([trees[b] for b in members], p, roots[members])
        verdict = self._verdict(rule, batch, [drafted[b] for b in members])
        if verdict is None:
            return {b: Judged(drafted[b], failure=("internal_error", f"the rule '{rule}' failed")) for b in members}
        judged = {}
        for at, b in enumerate(members):
            nodes = kept[b]
            path = verdict.path[at, : verdict.n_acc[at]].tolist()
            path = path if nodes is None else [nodes[node] for node in path]
            token = int(verdict.next_token[at])
            judged[b] = _judged(drafted[b], path, token, law.shaped, int(law.starts[b]), law.failures)
            judged[b].repaired = int(verdict.repaired[at])
        law.forbid([(one, int(law.starts[b])) for b, one in judged.items()], rule)
        return judged

    def _verdict(self, rule: str, batch: DraftBatch, drafted: list[Drafted]) -> Verdict | None:
        """What a rule says; None: it has failed."""
        verifier = VERIFIERS.get(rule)
        values = [one.request.verifier_values for one in drafted]
        params: Mapping[str, npt.NDArray[np.float64]] = {
            param.name: np.array([float(own[param.name]) for own in values]) for param in verifier.params
        }
        try:
            verdict = verifier.verify(batch, self._noise(drafted), params)
            verdict.check(batch)
        except Exception:
            log.exception("the rule '%s' failed", rule)
            return None
        return verdict

    def _commit(self, judged: list[Judged]) -> None:
        """Let the states accept what was drawn, all requests together, token by token."""
        remembering = [one for one in judged if self._stack.remembers(one.drafted.slot)]
        depth = 0
        while remembering := [one for one in remembering if len(one.tokens) > depth]:
            slots = np.array([one.drafted.slot for one in remembering])
            tokens = torch.tensor([one.tokens[depth] for one in remembering])
            for row, why in self._stack.accept(slots, tokens.to(self._stack.device)).items():
                remembering[row].cut(depth, why)
            depth += 1

    def _noise(self, drafted: list[Drafted]) -> Noise:
        slots = np.array([one.slot for one in drafted])
        return self._stack.noise(slots, np.array([one.sequence.position for one in drafted]))


class _Law:
    """Shaped rows of all places of all drafts, one draft's after the other's."""

    def __init__(self, stack: SamplerStack, logits: Tensor, drafted: list[Drafted]) -> None:
        self._stack = stack
        rows, slots, positions, self.starts = _laid_out(drafted)
        self._logits = _rows(logits, rows)
        self.failures: Failures  # by row of `shaped`
        self.shaped: Tensor  # [R, V] fp32; failed rows, and those behind impossible tokens, mean nothing
        remembering = [b for b, one in enumerate(drafted) if stack.remembers(one.slot)]
        if not remembering:
            self.shaped, self.failures = stack.law(self._logits, slots, positions)
            return
        self.shaped, self.failures = torch.empty_like(self._logits), {}
        walked = np.zeros(len(rows), bool)
        for b in remembering:
            walked[self.starts[b] : self.starts[b] + 1 + len(drafted[b].tree.tokens)] = True
        others = np.flatnonzero(~walked)
        if len(others):
            self._shape(others, slots[others], positions[others])
        self._walk([(drafted[b], int(self.starts[b])) for b in remembering])

    def forbid(self, judged: list[tuple[Judged, int]], rule: str) -> None:
        """Cut what a rule has accepted or drawn where it is impossible. judged: with the first rows of their drafts."""
        rows = [start + 1 + place for one, start in judged for place in (ROOT, *one.path)[: len(one.tokens)]]
        tokens = [token for one, _ in judged for token in one.tokens]
        where = (torch.tensor(part, dtype=torch.int64, device=self.shaped.device) for part in (rows, tokens))
        possible = (self.shaped[tuple(where)] > -torch.inf).tolist()
        if all(possible):
            return
        log.error("the rule '%s' gave tokens of probability zero", rule)
        for one, _ in judged:
            own, possible = possible[: len(one.tokens)], possible[len(one.tokens) :]
            if not all(own):
                one.cut(own.index(False), ("internal_error", f"the rule '{rule}' gave an impossible token"))

    def _shape(self, rows: Ints, slots: Ints, positions: Ints) -> Failures:
        """Shape some rows; what is new about failures, by position in `rows`."""
        index = torch.from_numpy(rows).to(self._logits.device)
        shaped, failures = self._stack.law(self._logits[index], slots, positions)
        self.shaped[index] = shaped
        self.failures |= {int(rows[row]): why for row, why in failures.items()}
        return failures

    def _walk(self, drafted: list[tuple[Drafted, int]]) -> None:
        """Depth first, all requests at once: advance, shape, go back where a path branches off."""
        walks = [_Walk(one, start, self._stack) for one, start in drafted]
        try:
            self._visit(walks)
        finally:
            for walk in walks:
                walk.finish()

    def _visit(self, walks: list[_Walk]) -> None:
        active = walks
        while active:
            slots = np.array([walk.drafted.slot for walk in active])
            rows = np.array([walk.start + 1 + walk.place for walk in active])
            positions = np.array([walk.drafted.sequence.position + walk.depth for walk in active])
            failed = self._shape(rows, slots, positions)
            for row, walk in enumerate(active):
                walk.visited(row not in failed)
            advancing = []
            for walk in active:
                while (node := walk.next()) is not None:
                    parent = walk.start + 1 + int(walk.drafted.tree.parents[node])
                    if bool(self.shaped[parent, int(walk.drafted.tree.tokens[node])] > -torch.inf):
                        advancing.append(walk)
                        break
                    self.failures.setdefault(walk.start + 1 + node, _IMPOSSIBLE)  # nothing comes behind it
                    walk.visited(False)
            if advancing:
                tokens = [int(walk.drafted.tree.tokens[walk.place]) for walk in advancing]
                slots = np.array([walk.drafted.slot for walk in advancing])
                self._stack.accept(slots, torch.tensor(tokens, device=self._stack.device))
            active = advancing


_IMPOSSIBLE = (CONSTRAINT_UNSATISFIABLE, "the draft is impossible")


class _Walk:
    """One request's way through its tree, depth first. Its slot's state is that of `place`."""

    def __init__(self, drafted: Drafted, start: int, stack: SamplerStack) -> None:
        self.drafted, self.start = drafted, start
        self.place = ROOT
        self._stack = stack
        self._depths = (0, *drafted.tree.depths.tolist())
        self._below: dict[int, list[int]] = {}  # place -> children still to visit, the first one last
        for node in reversed(range(len(drafted.tree.tokens))):
            self._below.setdefault(int(drafted.tree.parents[node]), []).append(node)
        self._saved: dict[int, Snapshot] = {ROOT: stack.snapshot(drafted.slot)}
        self._path = [ROOT]
        self._at = ROOT  # what the state is that of

    @property
    def depth(self) -> int:
        return self._depths[self.place + 1]

    def visited(self, alive: bool) -> None:
        """The row of `place` is known; behind a dead one nothing is looked at."""
        if not alive:
            self._below.pop(self.place, None)
        elif self.place != ROOT and len(self._below.get(self.place, ())) > 1:
            self._saved[self.place] = self._stack.snapshot(self.drafted.slot)

    def next(self) -> int | None:
        """Go to the next node; the state is that of its parent then."""
        while self._path:
            below = self._below.get(self._path[-1])
            if below:
                parent, node = self._path[-1], below.pop()
                if self._at != parent:
                    self._stack.restore(self.drafted.slot, self._saved[parent])
                self._path.append(node)
                self.place = self._at = node
                return node
            self._path.pop()
        return None

    def finish(self) -> None:
        self._stack.restore(self.drafted.slot, self._saved[ROOT])


def _laid_out(drafted: Sequence[Drafted]) -> tuple[Ints, Ints, Ints, Ints]:
    """(rows of the logits, their slots, their positions, each draft's first row among these) of all places."""
    sizes = np.array([1 + len(one.tree.tokens) for one in drafted])
    starts = np.cumsum(sizes) - sizes
    rows = np.concatenate([np.arange(one.root, one.root + size) for one, size in zip(drafted, sizes, strict=True)])
    slots = np.repeat([one.slot for one in drafted], sizes)
    depths = np.concatenate([np.append(0, one.tree.depths) for one in drafted])
    return rows, slots, np.repeat([one.sequence.position for one in drafted], sizes) + depths, starts


def _rows(logits: Tensor, rows: Sequence[int] | Ints) -> Tensor:
    """logits[rows]; no copy where they are consecutive."""
    first, count = int(rows[0]), len(rows)
    if int(rows[-1]) - first == count - 1 and (np.diff(rows) == 1).all():
        return logits[first : first + count]
    return logits[torch.as_tensor(np.asarray(rows), device=logits.device)]


def _children(tree: DraftTree) -> dict[tuple[int, int], int]:
    """(place, token) -> the first child of the place that is this token."""
    found: dict[tuple[int, int], int] = {}
    for node, key in enumerate(zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True)):
        found.setdefault(key, node)
    return found


def _judged(one: Drafted, path: list[int], token: int, shaped: Tensor, start: int, failures: Failures) -> Judged:
    """shaped: [R, V], the draft's places from row `start` on; failures: by row of it."""
    places = [start + 1 + place for place in (ROOT, *path)]
    tokens = one.tree.tokens[path].tolist()
    failure = failures.get(places[-1])
    if failure is None:
        tokens.append(token)
    return Judged(one, path, tokens, [(shaped, row) for row in places[: len(tokens)]], failure)


def _reachable(tree: DraftTree, start: int, failures: Failures) -> list[int]:
    """Nodes without a failed row on the way to them."""
    alive = {ROOT} if start not in failures else set()
    nodes = []
    for node, parent in enumerate(tree.parents.tolist()):
        if parent in alive:
            nodes.append(node)
            if start + 1 + node not in failures:
                alive.add(node)
    return nodes
