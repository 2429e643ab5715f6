"""Drafts for the sequences of a step: who gets some, from which source, how long, and what became of them.

Owned by the engine thread. What it decides depends on committed tokens, past outcomes, costs and the load only, never
on what a step is about to draw, so the law of the output stays what it is (spec_decode.md 2.3).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from typing import TypeVar

from engine.executor import Drawn, Executor
from engine.request import FinishReason
from engine.scheduler import Scheduler, Work
from engine.sequence import Sequence
from samplers.chain import DEFAULT_DRAW, Chain, Item
from samplers.rng import Noise
from samplers.temperature import GREEDY_BELOW
from spec_decode.acceptance import Verified
from spec_decode.contract import DraftAdmission, Drafter, DraftPlan, DraftTree, LoadedSource, TreeError
from spec_decode.controller import Candidate, Controller, Load
from spec_decode.cost_model import CostModel
from spec_decode.request import SpecRequest, depth_limit
from spec_decode.statistics import SpecStatistics
from spec_decode.tree_forms import Form, chain, depths, halving, part, static

log = logging.getLogger(__name__)
T = TypeVar("T")
NOTHING = Verified((), ())
# steps for which nothing is asked after nothing has come of it: finding out costs time in every step, and whether drawn
# drafts pay changes slowly; looked-up ones may turn up at any time
REST_DRAWN, REST_LOOKED_UP = 31, 5
STALE_S = 0.1  # that totals may be old while steps are run


@dataclass
class _Speculating:
    """A sequence that is drafted for."""

    request: SpecRequest
    slot: int  # under which its drafter and the controller know it
    asked: bool = False  # its drafter has made a draft already
    rest: int = 0  # steps until drafts are thought of again
    fruitless: int = 0  # times in a row that nothing has come of it
    candidate: Candidate | None = None  # of this step
    statistics: SpecStatistics = field(default_factory=SpecStatistics)


@dataclass
class _Proposal:
    """What might be drafted for a work in this step."""

    work: Work
    known: _Speculating
    plan: DraftPlan
    candidate: Candidate
    tree: DraftTree | None  # of a source that looks drafts up; others draw when it is known how much


class Speculation:
    """Of one engine."""

    def __init__(self, executor: Executor, scheduler: Scheduler) -> None:
        self._executor = executor
        self._scheduler = scheduler
        self._drafting = executor.drafting
        self._sources: Mapping[str, LoadedSource] = {one.source.name: one for one in self._drafting.sources}
        costs = {name: one.cost for name, one in self._sources.items() if one.cost is not None}
        self._costs = CostModel(self._drafting.verify, costs, self._drafting.plain)
        self._controller = Controller(self._costs)
        self._known: dict[Sequence, _Speculating] = {}
        self._ended: dict[tuple[str, str], SpecStatistics] = {}  # of sequences that have, by (source, verifier)
        self._freed_at, self._copied_at = 0.0, 0.0
        self._copy: Mapping[tuple[str, str], SpecStatistics] = {}
        self._unasked = 0  # steps since the controller was asked
        self._most_nodes = 2**31  # of a step, as far as the device's memory is known
        self._broken: set[str] = set()  # sources that have raised: nothing more is drafted from them

    def draft(self, works: Many[Work]) -> None:
        """Attach drafts to those works of a planned step that are to have some, and reserve their slots."""
        began = time.perf_counter()
        if not self._sources:
            return
        for work in works:
            self._admit(work)
        if not self._known:
            return
        self._unasked += 1
        load = Load(
            tokens=sum(len(work.draws) for work in works),
            rows=sum(work.count for work in works),
            context=sum(work.context for work in works) / len(works),
            max_rows=min(self._scheduler.max_batch_tokens, sum(work.count for work in works) + self._most_nodes),
            steps=self._unasked,
        )
        proposals = self._proposals(works)
        if not proposals:
            return
        self._unasked = 0
        chosen = self._controller.choose([one.candidate for one in proposals], load).nodes
        drawing: dict[str, list[tuple[_Proposal, list[int]]]] = {}
        for proposal, nodes in zip(proposals, chosen, strict=True):
            if not nodes:
                self._rest(proposal.known)
            elif not self._reserve(proposal, len(nodes)):
                continue
            elif proposal.tree is None:
                drawing.setdefault(proposal.known.request.draft, []).append((proposal, nodes))
            else:
                whole = len(nodes) == len(proposal.tree.tokens)
                self._attach(proposal, proposal.tree if whole else proposal.tree.part(nodes), len(nodes))
        for source, wanted in drawing.items():
            self._draw(source, wanted, began)
            began = time.perf_counter()

    def learn(self, one: Drawn, emitted: Many[int]) -> None:
        """What a step has given a sequence. emitted: the tokens that went into its output, fewer than drawn where it
        has ended."""
        known = self._known.get(one.sequence)
        if known is None:
            return
        source, candidate = known.request.draft, known.candidate
        if candidate is None:
            self._controller.advance(known.slot, len(emitted))
        else:
            known.candidate = None
            self._controller.observe(candidate, one.verified or NOTHING, len(emitted))
        self._contained(source, lambda drafter: drafter.commit(known.slot, emitted))
        known.statistics.add(one.verified or NOTHING, len(emitted))

    def measured(self, works: Many[Work], seconds: float) -> None:
        """What a step of these works has taken, drafting apart. Prompts cost other than drafts: nothing to learn."""
        if self._known and all(work.count == 1 for work in works):
            context = sum(work.context for work in works) / len(works)
            self._costs.observe_verify(sum(work.rows for work in works), context, seconds, len(works))

    def shrink(self, works: Many[Work]) -> bool:
        """The device has no memory for a step of these works: fewer drafts from now on. False: there were none."""
        nodes = sum(work.rows - work.count for work in works)
        if nodes:
            self._most_nodes = nodes // 2
        return nodes > 0

    @property
    def broken(self) -> frozenset[str]:
        """Sources that are switched off."""
        return frozenset(self._broken)

    def statistics(self, sequence: Sequence) -> SpecStatistics | None:
        """Of a sequence that has not been freed. None: it is not drafted for."""
        known = self._known.get(sequence)
        return None if known is None else known.statistics

    def free(self, sequence: Sequence) -> None:
        """The sequence has ended; harmless for others."""
        known = self._known.pop(sequence, None)
        if known is not None:
            key = known.request.draft, known.request.verifier
            self._freed_at = time.monotonic()
            self._ended.setdefault(key, SpecStatistics()).absorb(known.statistics)
            # what the server has ended, at a stop string for one, is an output like others
            finished = sequence.finish is not None and sequence.finish.reason is not FinishReason.ERROR
            self._contained(known.request.draft, lambda drafter: drafter.free(known.slot, keep=finished))
            self._controller.free(known.slot)

    def totals(self) -> Mapping[tuple[str, str], SpecStatistics]:
        """Of all sequences, by (source, verifier): a copy for other threads, not quite fresh while there is work."""
        now = time.monotonic()
        if self._known and now - self._copied_at <= STALE_S:
            return self._copy
        if self._known or self._copied_at < self._freed_at:
            self._copied_at = now
            totals = {key: ended.copy() for key, ended in self._ended.items()}
            for known in self._known.values():
                key = known.request.draft, known.request.verifier
                totals.setdefault(key, SpecStatistics()).absorb(known.statistics)
            self._copy = totals
        return self._copy

    # --- who is drafted for

    def _admit(self, work: Work) -> None:
        """Whoever draws for the first time is made known to its drafter; choices of one prompt share the work."""
        first: int | None = None
        for sequence in work.draws:
            request = sequence.active.request.speculation
            if request is None or sequence in self._known or sequence.active.family is not None:
                continue
            slot, stream = sequence.slot, sequence.stream
            assert slot is not None
            if first is None:
                admission = self._admission(sequence, request)
                self._contained(request.draft, lambda drafter, slot=slot, own=admission: drafter.admit(slot, own))
                first = slot
            else:
                self._contained(
                    request.draft, lambda drafter, slot=slot, of=first, own=stream: drafter.fork(of, slot, own)
                )
            self._controller.admit(slot)
            self._known[sequence] = _Speculating(request, slot)

    def _admission(self, sequence: Sequence, request: SpecRequest) -> DraftAdmission:
        asked = sequence.active.request
        return DraftAdmission(
            tokens=sequence.tokens,
            prompt_length=sequence.prompt_length,
            options=request.options,
            ending_ids=asked.eos_token_ids | asked.stop_token_ids,
            tenant=asked.tenant,
            chain=_draft_chain(asked.chain, request, self._drafting.forgetful),
            stream=sequence.stream,
            law=request.sibling_law,
            shared_noise=request.draft_noise == "shared",
            vocabulary=request.draft_vocab,
        )

    def _proposals(self, works: Many[Work]) -> list[_Proposal]:
        """Of sequences that are in the middle of their output: their works are a single row from which they draw."""
        found = []
        for work in works:
            known = self._known.get(work.sequence)
            if known is None or known.request.draft in self._broken:
                continue
            if work.count != 1 or work.draws != [work.sequence]:
                continue
            if known.rest:
                known.rest -= 1
                continue
            sequence = work.sequence
            left = sequence.active.request.max_tokens - sequence.position
            depth = depth_limit(left, left, self._drafting.max_depth)
            if depth > 0:
                proposal = self._proposal(work, known, depth)
                if proposal is not None:
                    found.append(proposal)
        return found

    def _proposal(self, work: Work, known: _Speculating, depth: int) -> _Proposal | None:
        request = known.request
        plan = request.plan(depth)
        tree, form, matched = None, plan.form, 0
        if not self._sources[request.draft].source.draws:
            noise = self._executor.noise([work.sequence])
            trees = self._contained(request.draft, lambda drafter: self._asked(drafter, [known.slot], [plan], noise))
            if not trees:
                return None
            [tree] = trees
            form, matched = tuple(tree.parents.tolist()), tree.matched
            if not form:
                self._rest(known)
        elif form is None:  # it grows where it is probable: what it will look like can only be guessed
            form = static(halving(plan.top_k, plan.max_depth), plan.max_nodes)
        if not form:
            return None
        fixed = request.num_tokens is not None
        return _Proposal(work, known, plan, Candidate(known.slot, request.draft, form, matched, fixed), tree)

    def _rest(self, known: _Speculating) -> None:
        """Nothing has come of thinking about a draft: wait before it is done again."""
        drawn = self._sources[known.request.draft].source.draws
        known.rest = min(15 * (known.fruitless + 1), REST_DRAWN) if drawn else min(known.fruitless, REST_LOOKED_UP)
        known.fruitless += 1

    def _contained(self, source: str, call: Callable[[Drafter], T]) -> T | None:
        """What a drafter returns. One that raises is not called again, and requests go on without its drafts."""
        if source not in self._broken:
            try:
                return call(self._sources[source].drafter)
            except Exception:
                log.exception("the drafts of '%s' failed and are switched off", source)
                self._broken.add(source)
        return None

    def _asked(self, drafter: Drafter, slots: list[int], plans: list[DraftPlan], noise: Noise) -> list[DraftTree]:
        """What it proposes. Raises TreeError for what is no draft."""
        trees = drafter.propose(slots, plans, noise)
        if len(trees) != len(slots):
            raise TreeError(f"{len(trees)} trees for {len(slots)} requests")
        for tree, plan in zip(trees, plans, strict=True):
            tree.check()
            if len(tree.tokens) > plan.max_nodes or tree.depths.max(initial=0) > plan.max_depth:
                raise TreeError(f"a tree of more than {plan.max_nodes} nodes or {plan.max_depth} levels")
            if plan.form == chain(len(plan.form or ())) and not tree.is_chain:
                raise TreeError("a tree where a chain was asked for")
            if len(tree.tokens) and not 0 <= tree.tokens.min() <= tree.tokens.max() < self._executor.vocab_size:
                raise TreeError("a draft holds ids that are no tokens")
        return trees

    # --- drafts

    def _draw(self, source: str, wanted: Many[tuple[_Proposal, list[int]]], began: float) -> None:
        """Let a source draw drafts of these nodes of what was planned, for all requests together. began: when the step
        was first thought about, which would have been left out without drafts."""
        slots = [proposal.known.slot for proposal, _ in wanted]
        plans = [self._narrowed(proposal, nodes) for proposal, nodes in wanted]
        noise = self._executor.noise([proposal.work.sequence for proposal, _ in wanted])
        trees = self._contained(source, lambda drafter: self._asked(drafter, slots, plans, noise))
        seconds = time.perf_counter() - began
        known = [proposal.known for proposal, _ in wanted]
        if trees is None:
            trees = [DraftTree.one_hot([], []) for _ in wanted]
        elif (
            all(one.asked for one in known) and all(len(tree.tokens) for tree in trees) and self._costs.charges(source)
        ):
            # a first draft computes the prompt as well, and one that was not made costs nothing
            deepest = max(int(tree.depths.max()) for tree in trees)
            self._costs.observe_draft(source, len(wanted), deepest, seconds)
        for (proposal, nodes), tree in zip(wanted, trees, strict=True):
            proposal.known.asked = True
            if not len(tree.tokens):
                self._rest(proposal.known)
            self._attach(proposal, tree, len(nodes))

    def _narrowed(self, proposal: _Proposal, nodes: list[int]) -> DraftPlan:
        """The plan for these nodes of it."""
        plan, candidate = proposal.plan, proposal.candidate
        form: Form = part(candidate.form, nodes)
        deepest = max(depths(form))
        if plan.form is None:
            return replace(plan, max_nodes=len(nodes), max_depth=deepest)
        known = self._controller.gains(candidate)
        gains = None if candidate.fixed else tuple(known[node] for node in nodes)
        return replace(plan, max_nodes=len(nodes), max_depth=deepest, form=form, gains=gains)

    def _reserve(self, proposal: _Proposal, count: int) -> bool:
        """Scratch slots, before anything is drawn: whether there is a draft must not depend on its tokens. False: there
        is no room, and the step is a plain one."""
        pages, branch = self._scheduler.pages, proposal.work.sequence.branch
        assert branch is not None
        fits = pages.pages_needed(branch, count) <= pages.available()
        if fits:
            pages.append(branch, count)
        return fits

    def _attach(self, proposal: _Proposal, tree: DraftTree, reserved: int) -> None:
        """reserved: slots, of which a smaller tree gives back what it does not need."""
        branch, count = proposal.work.sequence.branch, len(tree.tokens)
        assert branch is not None and count <= reserved
        self._scheduler.pages.truncate(branch, branch.length - reserved + count)
        if count:
            proposal.known.fruitless = 0
            proposal.work.draft = tree
            proposal.known.candidate = replace(proposal.candidate, form=tuple(tree.parents.tolist()))


def _draft_chain(chain: Chain, request: SpecRequest, forgetful: frozenset[str]) -> Chain:
    """What shapes the rows of a drafter: the stages that remember nothing, at the temperature of drafts."""
    stages = tuple(item for item in chain.stages if item.name in forgetful)
    greedy, temperature = chain.greedy, request.draft_temperature
    if temperature is not None:
        greedy = temperature < GREEDY_BELOW
        own = Item("temperature", {"temperature": temperature, "dynatemp_range": 0.0, "dynatemp_exponent": 1.0})
        given = any(item.name == "temperature" for item in stages)
        if greedy:
            stages = tuple(item for item in stages if item.name != "temperature")
        else:
            stages = tuple(own if item.name == "temperature" else item for item in stages)
            stages = stages if given else (*stages, own)
    draw = chain.draw if chain.draw.name in forgetful else Item(DEFAULT_DRAW, {})
    return replace(chain, stages=stages, draw=draw, greedy=greedy)
