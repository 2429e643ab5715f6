"""The search behind beam search and its kin: the W best texts so far grow together (samplers.md 17.1), in groups that
keep out of each other's way where asked (Vijayakumar et al., arXiv 1610.02424).

Knows nothing of requests. A `Guide` says what else counts besides probability.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samplers.programs.branch import Branch, End, Token
from samplers.programs.rows import Rows

Floats = npt.NDArray[np.float64]
_DEPTHS = 1, 4, 16  # times 2W: tokens of each row looked at, the next of these when a guide refused too many


@dataclass(frozen=True)
class Terms:
    """How a search ranks and when it stops."""

    width: int  # beams of all groups
    length_penalty: float
    first: bool  # stop as soon as a group has as many texts as beams
    groups: int = 1
    diversity: float = 0.0

    def score(self, logq: float, length: int) -> float:
        """Of a text with ln q `logq` and `length` tokens, the ending one included."""
        return float(logq / length**self.length_penalty)

    def reach(self, logq: float, length: int, longest: int) -> float:
        """What no text that goes on from here can exceed: ln q only falls."""
        return self.score(logq, longest if self.length_penalty > 0 else length + 1)


@dataclass(frozen=True, slots=True)
class Beam:
    """A text that goes on."""

    branch: Branch
    logq: float = 0.0  # ln q of its tokens
    bonus: float = 0.0  # what the guide adds to it


@dataclass(slots=True)
class Candidate:
    """A beam and one more token."""

    beam: Beam
    row: int
    token: int
    logq: float
    penalty: float  # nats, for what earlier groups have done
    ids: list[int]  # those of the beam and the token
    end: End | None
    bonus: float = 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """A text that has ended."""

    tokens: list[Token]
    end: End
    score: float

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def details(self) -> dict[str, Any]:
        return {"beam_score": self.score, "logprob": math.fsum(token.logprob for token in self.tokens)}


class Guide:
    """What steers a search besides probability. This one does not."""

    def allowed(self, texts: Sequence[Sequence[int]], vocab: int) -> Tensor | None:
        """[R, V] bool, CPU: tokens that may follow these R texts; None: all may."""
        return None

    def admits(self, ids: Sequence[int], end: End | None) -> bool:
        """Whether a text may be kept; for what the token alone does not tell."""
        return True

    def weigh(self, candidates: Sequence[Candidate]) -> list[float]:
        """What to add to ln q of each for its rank; -inf: it is not kept."""
        return [0.0] * len(candidates)


NO_GUIDE = Guide()


def search(root: Branch, terms: Terms, guide: Guide = NO_GUIDE) -> Generator[Sequence[Branch], Rows, list[Found]]:
    """The texts found, no two of the same tokens, best first."""
    width = terms.width // terms.groups
    groups = [_Group(width, [Beam(root)]) for _ in range(terms.groups)]
    while active := [group for group in groups if group.beams]:
        branches = list(dict.fromkeys(beam.branch for group in active for beam in group.beams))
        rows = yield branches
        step = _Step(rows, branches, guide, 2 * terms.width)
        taken = np.zeros(rows.shaped.shape[1])  # by token: beams that have taken it in this step
        for group in active:
            group.choose(step, terms, terms.diversity * taken)
            np.add.at(taken, [heir.token for heir in group.heirs], 1)
        grown = iter(step.grow([heir for group in active for heir in group.heirs]))
        for group in active:
            group.beams = [Beam(next(grown), heir.logq, heir.bonus) for heir in group.heirs]
    unique = {tuple(text.ids): text for group in groups for text in group.found}
    return sorted(unique.values(), key=_worst_last)


def _worst_last(text: Found) -> float:
    return -text.score


@dataclass(slots=True)
class _Group:
    """Beams that compete with each other."""

    width: int
    beams: list[Beam]
    heirs: list[Candidate] = field(default_factory=list)  # what goes on after this step
    found: list[Found] = field(default_factory=list)  # the best `width`, best first

    def choose(self, step: _Step, terms: Terms, penalties: Floats) -> None:
        """Take one step; `penalties` [V], nats by token."""
        ended, going = [], []
        for rank, one in enumerate(step.candidates(self.beams, 2 * self.width, penalties)):
            stops = one.end is not None and one.end.reason == "stop"
            if stops and rank < self.width:
                ended.append(one)
            elif not stops and len(going) < self.width:
                going.append(one)
        ended += [one for one in going if one.end is not None]
        for one, token in zip(ended, step.tokens(ended), strict=True):
            assert one.end is not None
            score = terms.score(one.logq, len(one.ids))
            self.found.append(Found([*one.beam.branch.tokens, token], one.end, score))
        self.found = sorted(self.found, key=_worst_last)[: self.width]
        heirs = [one for one in going if one.end is None]
        self.heirs = [] if self._is_done(heirs, terms) else heirs

    def _is_done(self, heirs: Sequence[Candidate], terms: Terms) -> bool:
        if len(self.found) < self.width:
            return False
        longest = self.beams[0].branch.limits.max_tokens
        reach = max((terms.reach(one.logq, len(one.ids), longest) for one in heirs), default=-math.inf)
        return terms.first or self.found[-1].score >= reach


class _Step:
    """The rows of one step and what can be made of them."""

    def __init__(self, rows: Rows, branches: Sequence[Branch], guide: Guide, depth: int) -> None:
        """`depth`: tokens of each row to look at."""
        self._rows = rows
        self._guide = guide
        self._row_of = {branch: at for at, branch in enumerate(branches)}
        self._vocab = rows.shaped.shape[1]
        self._depths = [depth * factor for factor in _DEPTHS]
        allowed = guide.allowed([branch.ids for branch in branches], self._vocab)
        self._allowed = None if allowed is None else allowed.to(rows.shaped.device)
        self._tops: dict[int, tuple[Floats, npt.NDArray[np.int64]]] = {}

    def candidates(self, beams: Sequence[Beam], wanted: int, penalties: Floats) -> list[Candidate]:
        """The `wanted` best continuations of these beams that the guide admits, in order of rank.

        Before the guide has weighed a text, its parent's bonus stands for its own.
        """
        found: list[Candidate] = []
        for depth in self._depths:
            found, refused = self._admitted(beams, wanted, penalties, depth)
            # what a row has beyond `depth` can be among the best only if so many of what is before it have dropped out;
            # penalties alone cannot do it: they hit at most W - W/G tokens, and 2W/G are wanted of the first 2W
            if refused <= depth - wanted or depth >= self._vocab:
                break
        for one, bonus in zip(found, self._guide.weigh(found), strict=True):
            one.bonus = bonus
        kept = [one for one in found if one.bonus > -math.inf]
        return sorted(kept, key=lambda one: -(one.logq - one.penalty + one.bonus))

    def tokens(self, ones: Sequence[Candidate]) -> list[Token]:
        """The candidates' last tokens."""
        if not ones:
            return []
        asked: list[list[int]] = [[] for _ in range(len(self._rows))]
        for one in ones:
            asked[one.row].append(one.token)
        widest = max(map(len, asked))
        ids = torch.tensor([row + [0] * (widest - len(row)) for row in asked], dtype=torch.int64)
        answers = [iter(row) for row in self._rows.tokens(ids.to(self._rows.shaped.device))]
        return [next(answers[one.row]) for one in ones]

    def grow(self, heirs: Sequence[Candidate]) -> list[Branch]:
        """A branch for each. A branch's first heir continues it, the others are forks; without any it is released."""
        numbers: Counter[Branch] = Counter()
        grown = []
        for one in heirs:
            branch = one.beam.branch
            grown.append(branch.fork(numbers[branch]) if numbers[branch] else branch)
            numbers[branch] += 1
        for branch, token in zip(grown, self.tokens(heirs), strict=True):
            branch.push(token)
        for branch in self._row_of:
            if branch not in numbers:
                branch.release()
        return grown

    def _admitted(
        self, beams: Sequence[Beam], wanted: int, penalties: Floats, depth: int
    ) -> tuple[list[Candidate], int]:
        """(candidates by falling rank, how many the guide refused on the way), of `depth` tokens of each row."""
        rows = [self._row_of[beam.branch] for beam in beams]
        logqs, ids = (table[rows] for table in self._top(depth))  # [B, depth]
        logqs = logqs + np.array([[beam.logq] for beam in beams])
        lost = penalties[ids]
        ranks = logqs - lost + np.array([[beam.bonus] for beam in beams])
        found: list[Candidate] = []
        refused = 0
        for place in np.argsort(-ranks, axis=None, kind="stable").tolist():
            if len(found) == wanted or ranks.flat[place] == -np.inf:
                break
            at, token = place // ids.shape[1], int(ids.flat[place])
            text = [*beams[at].branch.ids, token]
            end = beams[at].branch.limits.end(text)
            if self._guide.admits(text, end):
                logq, penalty = float(logqs.flat[place]), float(lost.flat[place])
                found.append(Candidate(beams[at], rows[at], token, logq, penalty, text, end))
            else:
                refused += 1
        return found, refused

    def _top(self, depth: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        """(ln q fp64, ids) of each row's best tokens, each [R, min(depth, V)]."""
        if depth not in self._tops:
            logqs, ids = self._rows.top(depth, self._allowed)
            self._tops[depth] = logqs.double().cpu().numpy(), ids.cpu().numpy()
        return self._tops[depth]
