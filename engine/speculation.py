"""Drafts for the sequences of a step: who gets some, from which source, how long, and what became of them.

Owned by the engine thread. What it decides depends on committed tokens, past outcomes, costs and the load only, never
on what a step is about to draw, so the law of the output stays what it is (spec_decode.md 2.3).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace

from engine.drafters import Drafters
from engine.executor import Drawn, Executor
from engine.request import FinishReason
from engine.scheduler import Scheduler, Work
from engine.sequence import Sequence
from samplers.chain import DEFAULT_DRAW, Chain, Item
from samplers.temperature import GREEDY_BELOW
from spec_decode.acceptance import Verified
from spec_decode.contract import DraftAdmission, DraftPlan, DraftTree
from spec_decode.controller import Candidate, Controller, Load
from spec_decode.cost_model import CostModel
from spec_decode.request import SourceUse, SpecRequest, depth_limit
from spec_decode.statistics import SpecStatistics
from spec_decode.tree_forms import Form, depths, halving, part, static
from spec_decode.worth import Worth

NOTHING = Verified((), ())
# steps for which nothing is asked after nothing has come of it: finding out costs time in every step, and whether drawn
# drafts pay changes slowly; looked-up ones may turn up at any time, but each request of a step is looked at by itself
REST_DRAWN, REST_LOOKED_UP = 31, 5
TOGETHER = 8  # many requests that rest begin again at once, at the latest in every 8th step
THINKING_RATE = 0.1  # of what has changed, this much is taken over
STALE_S = 0.5  # that totals may be old while steps are run
MEASURED = 2  # of so many steps without drafts one is timed for the cost model; those with drafts all are


@dataclass
class _Use:
    """A source that a sequence is drafted for by."""

    source: str
    told: int  # tokens of the text that its drafter knows
    seen: int = 0  # tokens of the text when it last made a draft
    rest: int = 0  # steps until its drafts are thought of again
    fruitless: int = 0  # times in a row that nothing has come of it


@dataclass
class _Speculating:
    """A sequence that is drafted for."""

    sequence: Sequence
    request: SpecRequest
    slot: int  # under which its drafters and the controller know it
    uses: list[_Use]
    candidate: Candidate | None = None  # of this step
    steps: int = 0  # without a draft
    emitted: int = 0  # tokens in them
    drafted: dict[str, SpecStatistics] = field(default_factory=dict)  # steps with one, by its source

    def statistics(self) -> dict[str, SpecStatistics]:
        """By source; steps without a draft belong to the only source there is, or to none."""
        found = {source: done.copy() for source, done in self.drafted.items()}
        found.setdefault(self.request.draft, SpecStatistics()).add_plain(self.steps, self.emitted)
        return found


@dataclass
class _Proposal:
    """What might be drafted for a work in this step."""

    work: Work
    known: _Speculating
    use: _Use
    plan: DraftPlan
    candidate: Candidate
    tree: DraftTree | None  # of a source that looks drafts up; others draw when it is known how much


class Speculation:
    """Of one engine."""

    def __init__(self, executor: Executor, scheduler: Scheduler) -> None:
        self._executor = executor
        self._scheduler = scheduler
        self._drafting = executor.drafting
        self._drafters = Drafters(self._drafting.sources, executor.vocab_size)
        costs = {one.source.name: one.cost for one in self._drafting.sources if one.cost is not None}
        self._costs = CostModel(self._drafting.verify, costs, self._drafting.plain)
        self._controller = Controller(self._costs)
        self._known: dict[Sequence, _Speculating] = {}
        self._ended: dict[tuple[str, str], SpecStatistics] = {}  # of sequences that have, by (source, verifier)
        self._freed_at, self._copied_at = 0.0, 0.0
        self._copy: Mapping[tuple[str, str], SpecStatistics] = {}
        self._steps = 0  # in which somebody was drafted for, or might have been
        self._unasked = 0  # of them since the controller was asked
        self._worth = Worth()
        self._thought, self._emitted = True, 0  # of the current step: whether drafts are thought of, tokens it gives
        self._thinking_s = 0.0  # that steps have taken of late until it was known what is drafted
        self._most_nodes = 2**31  # of a step, as far as the device's memory is known

    def draft(self, works: Many[Work]) -> None:
        """Attach drafts to those works of a planned step that are to have some, and reserve their slots."""
        began = time.perf_counter()
        if not self._drafters:
            return
        for work in works:
            self._admit(work)
        if not self._known:
            return
        self._steps += 1
        self._unasked += 1
        self._emitted = 0
        self._thought = self._worth.thinks(len(works))
        rows, sampling = sum(work.count for work in works), sum(bool(work.draws) for work in works)
        load = Load(
            tokens=sum(len(work.draws) for work in works),
            rows=sampling,
            context=sum(work.context for work in works) / len(works),
            max_rows=sampling + max(0, min(self._scheduler.max_batch_tokens - rows, self._most_nodes)),
            steps=self._unasked,
            thinking_s=self._thinking_s,
        )
        proposals = self._proposals(works)
        if not proposals:
            return
        self._unasked = 0
        chosen = self._controller.choose([one.candidate for one in proposals], load).nodes
        self._thinking_s += THINKING_RATE * (time.perf_counter() - began - self._thinking_s)
        drawing: dict[str, list[tuple[_Proposal, list[int]]]] = {}
        for proposal, nodes in zip(proposals, chosen, strict=True):
            if nodes is None:
                continue
            if not nodes:
                self._rest(proposal.known, proposal.use)
            elif not self._reserve(proposal, len(nodes)):
                continue
            elif proposal.tree is None:
                drawing.setdefault(proposal.use.source, []).append((proposal, nodes))
            else:
                whole = len(nodes) == len(proposal.tree.tokens)
                self._attach(proposal, proposal.tree if whole else proposal.tree.part(nodes), len(nodes))
        for source, wanted in drawing.items():
            self._draw(source, wanted, began)
            began = time.perf_counter()

    def learn(self, one: Drawn, emitted: Many[int]) -> None:
        """What a step has given a sequence. emitted: the tokens that went into its output, fewer than drawn where it
        has ended."""
        self._emitted += len(emitted)
        known = self._known.get(one.sequence)
        if known is None:
            return
        if known.candidate is None:
            known.steps += 1
            known.emitted += len(emitted)
            return
        source, verified = known.candidate.source, one.verified or NOTHING
        self._controller.observe(known.candidate, verified)
        known.drafted.setdefault(source, SpecStatistics()).add(verified, len(emitted), source)
        known.candidate = None
        for use in known.uses:
            if use.source == source:  # its draft is settled now
                self._tell(known, use)

    def measured(self, works: Many[Work], seconds: float) -> None:
        """What a step of these works has taken, drafting apart. Prompts cost other than drafts: nothing to learn."""
        drafted = any(work.draft is not None for work in works)
        if not self._known or not (drafted or self._steps % MEASURED == 0):
            return
        if all(work.count == 1 for work in works):
            context = sum(work.context for work in works) / len(works)
            self._costs.observe_verify(sum(work.rows for work in works), context, seconds, len(works))

    def stepped(self, works: Many[Work], seconds: float) -> None:
        """What a whole step of these works has taken, all of it."""
        free = any(known.request.num_tokens is None for known in self._known.values())
        if free and all(work.count == 1 for work in works):
            self._worth.observe(len(works), self._thought, self._emitted, seconds)

    def shrink(self, works: Many[Work]) -> bool:
        """The device has no memory for a step of these works: fewer drafts from now on. False: there were none."""
        nodes = sum(work.rows - work.count for work in works)
        if nodes:
            self._most_nodes = nodes // 2
        return nodes > 0

    @property
    def broken(self) -> frozenset[str]:
        """Sources that are switched off."""
        return self._drafters.broken

    def statistics(self, sequence: Sequence) -> SpecStatistics | None:
        """Of a sequence that has not been freed. None: it is not drafted for."""
        known = self._known.get(sequence)
        if known is None:
            return None
        total = SpecStatistics()
        for one in known.statistics().values():
            total.absorb(one)
        return total

    def free(self, sequence: Sequence) -> None:
        """The sequence has ended; harmless for others."""
        known = self._known.pop(sequence, None)
        if known is not None:
            self._freed_at = time.monotonic()
            _absorb(self._ended, known)
            # what the server has ended, at a stop string for one, is an output like others
            finished = sequence.finish is not None and sequence.finish.reason is not FinishReason.ERROR
            for use in known.uses:
                if finished:
                    self._tell(known, use)
                self._drafters.free(use.source, known.slot, keep=finished)
            self._controller.free(known.slot)

    def totals(self) -> Mapping[tuple[str, str], SpecStatistics]:
        """Of all sequences, by (source, verifier): a copy for other threads, not quite fresh while there is work. Steps
        without a draft of sequences that have several sources are counted under "auto"."""
        now = time.monotonic()
        if self._known and now - self._copied_at <= STALE_S:
            return self._copy
        if self._known or self._copied_at < self._freed_at:
            self._copied_at = now
            totals = {key: ended.copy() for key, ended in self._ended.items()}
            for known in self._known.values():
                _absorb(totals, known)
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
            for source in request.sources:
                if first is None:
                    self._drafters.admit(source.name, slot, self._admission(sequence, request, source))
                else:
                    self._drafters.fork(source.name, first, slot, stream)
            first = slot if first is None else first
            self._controller.admit(slot)
            uses = [_Use(source.name, told=len(sequence.tokens)) for source in request.sources]
            self._known[sequence] = _Speculating(sequence, request, slot, uses)

    def _admission(self, sequence: Sequence, request: SpecRequest, source: SourceUse) -> DraftAdmission:
        asked = sequence.active.request
        return DraftAdmission(
            tokens=tuple(sequence.tokens),
            prompt_length=sequence.prompt_length,
            options=source.options,
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
        looking: dict[str, list[tuple[Work, _Speculating, _Use, DraftPlan]]] = {}
        for work in works:
            known = self._known.get(work.sequence)
            if known is None or work.count != 1 or work.draws != [work.sequence]:
                continue
            if not self._thought and known.request.num_tokens is None:
                continue
            plan = None
            for use in known.uses:
                if use.rest:
                    use.rest -= 1
                    continue
                plan = plan or self._plan(work, known.request)
                if plan is None or not self._drafters.works(use.source):
                    continue
                if self._drafters.draws(use.source):
                    # a tree that grows where it is probable: what it will look like can only be guessed
                    grown = static(halving(plan.top_k, plan.max_depth), plan.max_nodes)
                    found.append(self._proposal(work, known, use, plan, grown if plan.form is None else plan.form))
                else:
                    looking.setdefault(use.source, []).append((work, known, use, plan))
        for source, asking in looking.items():
            noise = self._executor.noise([work.sequence for work, *_ in asking])
            plans = [plan for *_, plan in asking]
            for _, known, use, _ in asking:
                self._tell(known, use)
            trees = self._drafters.propose(source, [known.slot for _, known, *_ in asking], plans, noise)
            for (work, known, use, plan), tree in zip(asking, trees or (), strict=trees is not None):
                if len(tree.tokens):
                    found.append(self._proposal(work, known, use, plan, tuple(tree.parents.tolist()), tree))
                else:
                    self._rest(known, use)
        return found

    def _tell(self, known: _Speculating, use: _Use) -> None:
        """A drafter that rests is told what has been committed when it is asked again."""
        tokens = known.sequence.tokens
        if use.told < len(tokens):
            self._drafters.commit(use.source, known.slot, tokens[use.told :])
            use.told = len(tokens)

    def _plan(self, work: Work, request: SpecRequest) -> DraftPlan | None:
        """None: there is no room for drafts."""
        left = work.sequence.active.request.max_tokens - work.sequence.position
        depth = depth_limit(left, left, self._drafting.max_depth)
        return request.plan(depth) if depth > 0 else None

    def _proposal(
        self, work: Work, known: _Speculating, use: _Use, plan: DraftPlan, form: Form, tree: DraftTree | None = None
    ) -> _Proposal:
        matched, fixed = 0 if tree is None else tree.matched, known.request.num_tokens is not None
        unseen = len(work.sequence.tokens) - use.seen if tree is None else 0
        alike = f"{known.request.verifier}, greedy: {work.sequence.active.request.chain.greedy}"
        position = work.sequence.position
        candidate = Candidate(known.slot, use.source, form, matched, fixed, unseen, alike, position)
        return _Proposal(work, known, use, plan, candidate, tree)

    def _rest(self, known: _Speculating, use: _Use) -> None:
        """Nothing has come of thinking about a draft: wait before it is done again, unless the request says how much
        it wants."""
        if known.request.num_tokens is not None:
            return
        if self._drafters.draws(use.source):
            use.rest = min(15 * (use.fruitless + 1), REST_DRAWN)
        else:
            use.rest = min(2 ** (use.fruitless + 1) - 1, REST_LOOKED_UP * len(self._known), REST_DRAWN)
        use.rest += -(self._steps + use.rest) % min(1 + len(self._known) // 4, TOGETHER)
        use.fruitless += 1

    # --- drafts

    def _draw(self, source: str, wanted: Many[tuple[_Proposal, list[int]]], began: float) -> None:
        """Let a source draw drafts of these nodes of what was planned, for all requests together. began: when the step
        was first thought about, which would have been left out without drafts."""
        slots = [proposal.known.slot for proposal, _ in wanted]
        plans = [self._narrowed(proposal, nodes) for proposal, nodes in wanted]
        noise = self._executor.noise([proposal.work.sequence for proposal, _ in wanted])
        for proposal, _ in wanted:
            self._tell(proposal.known, proposal.use)
        trees = self._drafters.propose(source, slots, plans, noise)
        seconds = time.perf_counter() - began
        uses = [proposal.use for proposal, _ in wanted]
        if trees is None:
            trees = [DraftTree.one_hot([], []) for _ in wanted]
        elif all(use.seen for use in uses) and all(len(tree.tokens) for tree in trees) and self._costs.charges(source):
            # a first draft computes the prompt as well, and one that was not made costs nothing
            deepest = max(int(tree.depths.max()) for tree in trees)
            self._costs.observe_draft(source, len(wanted), deepest, seconds)
        for (proposal, nodes), tree in zip(wanted, trees, strict=True):
            proposal.use.seen = len(proposal.work.sequence.tokens)
            if not len(tree.tokens):
                self._rest(proposal.known, proposal.use)
            self._attach(proposal, tree, len(nodes))

    def _narrowed(self, proposal: _Proposal, nodes: list[int]) -> DraftPlan:
        """The plan for these nodes of it."""
        plan, candidate = proposal.plan, proposal.candidate
        form: Form = part(candidate.form, nodes)
        deepest = max(depths(form))
        if plan.form is None:
            return replace(plan, max_nodes=len(nodes), max_depth=deepest)
        known = self._controller.gains(candidate)
        gains = None if candidate.fixed else tuple(known[nodes].tolist())
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
            proposal.use.fruitless = 0
            proposal.work.draft = tree
            proposal.known.candidate = replace(proposal.candidate, form=tuple(tree.parents.tolist()))


def _absorb(totals: dict[tuple[str, str], SpecStatistics], known: _Speculating) -> None:
    for source, done in known.statistics().items():
        totals.setdefault((source, known.request.verifier), SpecStatistics()).absorb(done)


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
