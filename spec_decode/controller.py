"""Decides how much is drafted: for every step, the nodes with which the batch gives the most tokens per second.

Knows nothing about tokens or tensors. What it decides is a function of past outcomes, measured costs and the load,
never of what is drawn in the step, so the law of the output does not depend on it. For the engine thread.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from spec_decode.acceptance import Acceptance, RequestAcceptance, Verified, bucket
from spec_decode.cost_model import CostModel, Floats
from spec_decode.tree_forms import Form, depths

ON = 1.05  # a request that has stopped speculating begins again when it is predicted to gain so much
LEAST = 1.03  # gain for which anything is drafted: what is not predicted is on the side of plain steps
LOOK_STEPS = 8  # over which the time is spread that a source needs to read a text before its first draft
PROBE_EVERY = 32  # tokens of a request that has stopped
PROBE_NODES = 2  # of a probe, at most
PROBE_SHARE = 0.015  # of the time goes into probes, at most
CONFIDENT = 0.15  # chains are not drawn any further when their next token is less probable to be accepted

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Candidate:
    """What could be drafted for a request: the nodes of a tree, or any part of it that holds their parents."""

    request: int
    source: str
    form: Form  # of a draft that has been looked up: its own
    matched: int = 0  # of a draft that has been looked up
    fixed: bool = False  # the request has said how many: all, as far as there is room
    unseen: int = 0  # tokens of the text that the source has not seen yet
    alike: str = ""  # its sort: what is expected of a request is what others of its sort have shown
    position: int = 0  # output tokens that the request has


@dataclass(frozen=True)
class Load:
    """The step without drafts. Rows of prompts are computed anyway and are left out."""

    tokens: int  # that it gives: requests that sample
    rows: int  # that it computes for them
    context: float  # mean length of the contexts
    max_rows: int  # with drafts
    steps: int = 1  # since the last choice, this one included
    thinking_s: float = 0.0  # that it takes to find out what to draft: drafts have to be worth that as well


@dataclass(frozen=True)
class Choice:
    """What is drafted in a step."""

    nodes: list[list[int] | None]  # of each candidate, in rising order; None: its request has a better candidate
    gain: float  # tokens per second as predicted, relative to the step without drafts; probes are not counted


def confident(reached: Floats, top: Floats) -> npt.NDArray[np.bool_]:
    """[B] whether to draw one more token of each chain. reached: the probabilities that all tokens so far will be
    accepted; top: the largest entry of q for the next one, which is a function of tokens drawn so far."""
    return reached * top >= CONFIDENT


class Controller:
    """Of one engine."""

    def __init__(self, costs: CostModel) -> None:
        self._costs = costs
        self._sources: dict[tuple[str, str], Acceptance] = {}  # by source and sort of request
        self._requests: dict[int, _Request] = {}
        self._credit_s = 0.0  # that probes may cost
        self._wanted_s = 0.0  # that the next one costs; 0: it could be paid
        self._token_s = 0.0  # that a token takes without drafts: what one that a probe has gained is worth

    def admit(self, request: int) -> None:
        self._requests[request] = _Request()

    def free(self, request: int) -> None:
        del self._requests[request]

    def acceptance(self, source: str, alike: str = "") -> Acceptance:
        """Of all requests of a sort."""
        return self._sources.setdefault((source, alike), Acceptance())

    def gains(self, candidate: Candidate) -> Floats:
        """[N] the probability of each node to be accepted."""
        return self._rates(candidate).gains(candidate.form, bucket(candidate.matched))

    def observe(self, candidate: Candidate, verified: Verified) -> None:
        """What became of a request's draft in a step, perhaps of an empty one."""
        request = self._requests[candidate.request]
        if verified.form:
            self._rates(candidate).add(verified, bucket(candidate.matched))
            if len(verified.path):  # a probe that succeeds is followed by another one at once
                request.drafted_at[candidate.source] = -math.inf
            if request.probed:
                self._credit_s += len(verified.path) * self._token_s
        request.probed = False

    def choose(self, candidates: Sequence[Candidate], load: Load) -> Choice:
        """Predicted tokens are one per request that samples and, for each drafted node, the probability that it is
        accepted; predicted seconds those of the drafts and of all rows. Of a request's candidates one is thought about.
        """
        gains = [self.gains(one) for one in candidates]
        kept = self._preferred(candidates, gains, load)
        asked = [candidates[at] for at in kept]
        best = self._chosen(asked, [gains[at] for at in kept], load)
        chosen = best.chosen(len(asked))
        self._switch(asked, chosen)
        self._probe(asked, chosen, load)
        nodes: list[list[int] | None] = [None] * len(candidates)
        for at, own in zip(kept, chosen, strict=True):
            nodes[at] = own
        return Choice(nodes, best.gain)

    def _preferred(self, candidates: Sequence[Candidate], gains: Sequence[Floats], load: Load) -> list[int]:
        """Of each request the candidate with the most tokens per second, if all requests here drafted like it."""
        by_request: dict[int, list[int]] = {}
        for at, candidate in enumerate(candidates):
            by_request.setdefault(candidate.request, []).append(at)
        count = len(by_request)
        if count == len(candidates):
            return list(range(count))

        def rate(at: int) -> float:
            form, order = candidates[at].form, np.argsort(-gains[at], kind="stable")
            tokens = load.tokens + count * gains[at][order].cumsum()
            rows = load.rows + count * np.arange(1, 1 + len(order))
            seconds = self._costs.verify(rows, load.context, load.rows)
            deepest = np.maximum.accumulate(_depths(form)[order])
            seconds = seconds + self._costs.draft(candidates[at].source, count, deepest)
            return float((tokens / seconds).max(initial=0.0))

        return sorted(max(own, key=rate) if len(own) > 1 else own[0] for own in by_request.values())

    def _chosen(self, candidates: Sequence[Candidate], gains: Sequence[Floats], load: Load) -> _Best:
        if self._hopeless(candidates, gains, load):
            return _Best(_Nodes.of([], []), 1.0, 0.0)
        nodes = _Nodes.of(candidates, gains)
        best = self._best(nodes, candidates, load)
        if best.gain < LEAST and not nodes.fixed.any():
            return _Best(nodes.take(np.empty(0, np.int64)), 1.0, 0.0)
        timid = np.flatnonzero(best.gains_of(len(candidates)) < ON)
        timid = [at for at in timid.tolist() if not self._is_on(candidates[at])]
        if not timid:
            return best
        left = nodes.without(timid)
        return self._best(left, candidates, load) if len(left.owner) else _Best(left, 1.0, 0.0)

    def _hopeless(self, candidates: Sequence[Candidate], gains: Sequence[Floats], load: Load) -> bool:
        """Whether nothing would be gained if all nodes cost as much as a single row: a quick answer for the many steps
        in which little has been found for few."""
        if any(one.fixed for one in candidates):
            return False
        plain_s, least_s = self._costs.verify([load.rows, load.rows + 1], load.context, load.rows).tolist()
        hoped = load.tokens + sum(float(own.sum()) for own in gains)
        return hoped * plain_s <= load.tokens * (least_s + load.thinking_s)

    def _best(self, nodes: _Nodes, candidates: Sequence[Candidate], load: Load) -> _Best:
        """The best nodes of all. Gains fall along paths, so the most probable ones come with their parents; drafts cost
        by their depth, so those of at most each depth are tried. With one source nothing is better."""
        nodes = nodes.take(np.lexsort((-nodes.gain, ~nodes.fixed)))
        charging = {one.source for one in candidates if self._costs.charges(one.source)}
        if charging and not nodes.is_chain:
            limits = np.array([0, *sorted(set(nodes.depth.tolist()))])[:, None]
            within = (nodes.depth <= limits) | nodes.fixed  # [limits, N]
        else:
            # nothing costs by depth, or the first nodes are the first depths
            within = np.ones((1, len(nodes.owner)), bool)
        room = max(load.max_rows - load.rows, 0)
        counts = _sums(within)  # [limits, N + 1]: of the first nodes, those within the limit
        tokens = load.tokens + _sums(within * nodes.gain)
        seconds = self._costs.verify(load.rows + counts, load.context, load.rows)
        plain_s = float(seconds[0, 0])
        for source in charging:
            own = np.array([one.source == source for one in candidates])[nodes.owner]
            deepest = np.maximum.accumulate(within * own * nodes.depth, 1)
            seconds[:, 1:] += self._costs.draft(source, len(np.unique(nodes.owner[own])), deepest)
        seconds[:, 1:] += load.thinking_s + (within * self._first_looks(nodes, candidates)).cumsum(1)
        rates = tokens / seconds
        least = min(int(nodes.fixed.sum()), room)
        allowed = (counts <= room) & (np.arange(counts.shape[1]) >= least)
        limit, size = divmod(int(np.where(allowed, rates, -1.0).argmax()), rates.shape[1])
        kept = within[limit, :size]
        chosen = nodes.take(np.flatnonzero(kept))
        more_s = float(seconds[limit, size] - seconds[limit, least])
        lost = float(rates[limit, least]) * more_s
        return _Best(chosen, float(rates[limit, size]) * plain_s / load.tokens, lost)

    def _first_looks(self, nodes: _Nodes, candidates: Sequence[Candidate]) -> Floats:
        """[N] seconds for texts that sources have not seen, at the first node of each candidate."""
        own = np.array([self._costs.first_look(one.source, one.unseen) / LOOK_STEPS for one in candidates])
        first = np.zeros(len(nodes.owner))
        owners, at = np.unique(nodes.owner, return_index=True)
        first[at] = own[owners]
        return first

    def _switch(self, candidates: Sequence[Candidate], chosen: Sequence[Sequence[int]]) -> None:
        for candidate, nodes in zip(candidates, chosen, strict=True):
            if candidate.form and not candidate.fixed:
                request = self._requests[candidate.request]
                request.on[candidate.source, bucket(candidate.matched)] = bool(nodes)
                if nodes:
                    request.drafted_at[candidate.source] = candidate.position

    def _probe(self, candidates: Sequence[Candidate], chosen: Sequence[list[int]], load: Load) -> None:
        """Give requests that do without drafts a small one, those first that have waited longest, as far as there is
        credit. It grows by a share of every step, up to one step or to what the next probe costs."""
        rows = load.rows + sum(map(len, chosen))
        step_s = float(self._costs.verify(rows, load.context, load.rows))
        self._token_s = step_s / load.tokens
        self._credit_s = min(self._credit_s + PROBE_SHARE * step_s * load.steps, max(step_s, self._wanted_s))
        drafting = {one.source for one, nodes in zip(candidates, chosen, strict=True) if nodes}
        for at in sorted(self._due(candidates, chosen), key=lambda at: self._drafted_at(candidates[at])):
            candidate = candidates[at]
            count = min(PROBE_NODES, len(candidate.form), load.max_rows - rows)
            before_s, after_s = self._costs.verify([rows, rows + count], load.context, load.rows).tolist()
            cost_s = after_s - before_s + self._costs.first_look(candidate.source, candidate.unseen)
            if candidate.source not in drafting:
                cost_s += float(self._costs.draft(candidate.source, 1, max(depths(candidate.form[:count]), default=0)))
            if not count or cost_s > self._credit_s:
                self._wanted_s = cost_s
                break
            self._wanted_s = 0.0
            self._credit_s -= cost_s
            self._requests[candidate.request].probed = True
            self._requests[candidate.request].drafted_at[candidate.source] = candidate.position
            chosen[at].extend(range(count))  # the beginning of a form holds the parents of its nodes
            drafting.add(candidate.source)
            rows += count

    def _due(self, candidates: Sequence[Candidate], chosen: Sequence[Sequence[int]]) -> Iterator[int]:
        for at, (candidate, nodes) in enumerate(zip(candidates, chosen, strict=True)):
            waited = candidate.position - self._drafted_at(candidate)
            if candidate.form and not candidate.fixed and not nodes and waited >= PROBE_EVERY:
                yield at

    def _rates(self, candidate: Candidate) -> RequestAcceptance:
        known = self._requests[candidate.request].acceptance
        if candidate.source not in known:
            known[candidate.source] = RequestAcceptance(self.acceptance(candidate.source, candidate.alike))
        return known[candidate.source]

    def _is_on(self, candidate: Candidate) -> bool:
        return self._requests[candidate.request].on.get((candidate.source, bucket(candidate.matched)), True)

    def _drafted_at(self, candidate: Candidate) -> float:
        return self._requests[candidate.request].drafted_at.get(candidate.source, -math.inf)


@dataclass
class _Request:
    probed: bool = False  # what is drafted in this step is a probe
    acceptance: dict[str, RequestAcceptance] = field(default_factory=dict)  # by source
    on: dict[tuple[str, int], bool] = field(default_factory=dict)  # by source and bucket, whether it was drafted for
    drafted_at: dict[str, float] = field(default_factory=dict)  # by source, position where it was; -inf: probe at once


@dataclass(frozen=True)
class _Nodes:
    """Nodes of all candidates; each array is [N]."""

    owner: Ints  # candidate
    node: Ints  # in its form
    depth: Ints
    gain: Floats  # probability of being accepted
    fixed: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, candidates: Sequence[Candidate], gains: Sequence[Floats]) -> _Nodes:
        sizes = np.array([len(own) for own in gains], np.int64)
        owner = np.repeat(np.arange(len(sizes)), sizes)
        return cls(
            owner,
            np.arange(len(owner)) - np.repeat(sizes.cumsum() - sizes, sizes),
            np.concatenate([np.empty(0, np.int64), *(_depths(one.form) for one in candidates)]),
            np.concatenate([np.empty(0), *gains]),
            np.array([one.fixed for one in candidates], bool)[owner],
        )

    @property
    def is_chain(self) -> bool:
        """All belong to one candidate, one to each depth, in rising order."""
        return bool((self.owner == self.owner[:1]).all() and (np.diff(self.depth) > 0).all())

    def take(self, which: npt.NDArray[Any]) -> _Nodes:
        return _Nodes(self.owner[which], self.node[which], self.depth[which], self.gain[which], self.fixed[which])

    def without(self, owners: Collection[int]) -> _Nodes:
        return self.take(~np.isin(self.owner, list(owners)))


@lru_cache(2**12)
def _depths(form: Form) -> Ints:
    """[N] of every node; not to be written to."""
    return np.array(depths(form), np.int64)


def _sums(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[K, N + 1] of the first 0 to N of each row. values: [K, N]."""
    sums = np.zeros((len(values), values.shape[1] + 1), np.result_type(values, np.int64))
    values.cumsum(1, out=sums[:, 1:])
    return sums


@dataclass(frozen=True)
class _Best:
    """Nodes that have been chosen together."""

    nodes: _Nodes
    gain: float  # tokens per second, relative to those without any drafts
    lost: float  # tokens that the others would have got in the time for these nodes, fixed ones apart

    def gains_of(self, candidates: int) -> Floats:
        """[candidates] what the nodes of each gain, if each node is charged for an equal part of the additional time;
        infinity without such nodes. With one request it is `gain`."""
        free = self.nodes.take(~self.nodes.fixed)
        count = np.bincount(free.owner, minlength=candidates)
        gained = np.bincount(free.owner, free.gain, minlength=candidates)
        return np.where(count > 0, (1 + gained) / (1 + self.lost * count / max(len(free.owner), 1)), math.inf)

    def chosen(self, candidates: int) -> list[list[int]]:
        """Of each candidate, in rising order."""
        nodes = self.nodes.take(np.lexsort((self.nodes.node, self.nodes.owner)))
        ends = np.searchsorted(nodes.owner, np.arange(candidates), "right").tolist()
        every = nodes.node.tolist()
        return [every[start:end] for start, end in zip([0, *ends], ends, strict=False)]
