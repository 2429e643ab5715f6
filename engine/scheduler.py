"""Decides which tokens are computed in the next step.

Knows nothing about torch or text. There is no prefill or decode phase: a sequence needs tokens computed, a step
has a budget of rows, running sequences come first. Runs in the engine thread.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field

from engine.pages import OutOfPages, Pages
from engine.sequence import ActiveRequest, Sequence
from spec_decode.contract import DraftTree

USUAL_WEIGHT = 1 / 32  # of the latest answer in the mean length of answers


@dataclass(slots=True)
class Work:
    """One sequence's share of a step."""

    sequence: Sequence
    count: int  # tokens computed: [sequence.computed, sequence.computed + count)
    draws: list[Sequence] = field(default_factory=list)  # who samples from the last row; empty inside a prompt
    draft: DraftTree | None = None  # of the one who draws: computed behind the last row, in slots that are reserved

    @property
    def rows(self) -> int:
        """That the step computes for it."""
        return self.count + (0 if self.draft is None else len(self.draft.tokens))

    @property
    def context(self) -> int:
        return self.sequence.computed


class Scheduler:
    """Queues, slots and the token budget over one page manager."""

    def __init__(
        self, pages: Pages, max_seqs: int, max_batch_tokens: int, namespace: bytes, chunk: int | None = None
    ) -> None:
        self.pages = pages
        self.max_batch_tokens = max_batch_tokens
        self.chunk = chunk or max_batch_tokens
        self.namespace = namespace
        self.max_seqs = max_seqs
        self.running: list[Sequence] = []  # admission order
        self.waiting: list[Sequence] = []  # by Sequence.key; preempted ones keep their slot, branches their pages
        # branches whose program has their row and has not asked for another: pages and slots are theirs until needed
        self.parked: list[Sequence] = []
        self.free_slots = list(range(max_seqs - 1, -1, -1))
        self.taken_slots: list[int] = []  # taken from parked branches, whose sampler state they still hold
        self.preemptions = 0
        self._usual_output = 0.0  # running mean of the tokens that ended sequences had generated

    def add(self, active: ActiveRequest) -> None:
        self._wait(active.sequences[0])

    def add_leader(self, active: ActiveRequest) -> None:
        """The leader ended before its prompt was computed: queue the first of its followers instead."""
        leader = active.followers.pop(0)
        self._wait(leader)

    def ask(self, sequence: Sequence) -> None:
        """A program wants the next row of this branch."""
        if sequence in self.parked:
            self.parked.remove(sequence)
        self._wait(sequence)

    def park(self, sequence: Sequence) -> None:
        """The row has been computed."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self.parked.append(sequence)

    @property
    def idle(self) -> list[Sequence]:
        """Branches that hold pages and are not running: parked ones, and those that wait for their turn."""
        return [one for one in (*self.parked, *self.waiting) if one.branch is not None]

    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def schedule(self) -> list[Work]:
        """The next step. Pages and slots of everything in it are reserved when this returns."""
        works: list[Work] = []
        budget = self.max_batch_tokens
        preempted = self.preemptions
        index = 0
        while index < len(self.running) and budget:
            sequence = self.running[index]
            take = min(sequence.needed, budget, self.chunk)
            if not self._make_room(sequence, take):
                break  # it was the last of the running and has been preempted itself
            works.append(self._reserve(sequence, take))
            budget -= take
            index += 1
        while self.waiting and budget and self.preemptions == preempted:
            candidate = self._next_waiting()
            work = self._admit(candidate, budget) if candidate else None
            if work is None:
                break
            works.append(work)
            budget -= work.count
        for work in works:
            self._assign_draws(work)
        return works

    def fork_followers(self, work: Work) -> None:
        """After the prompt's forward pass: the followers that draw in this step share its pages.

        They run right behind their leader, before prompts that were admitted after it.
        """
        if len(work.draws) < 2:
            return
        leader = work.sequence
        assert leader.branch is not None and work.draws[0] is leader
        for place, follower in enumerate(work.draws[1:], self.running.index(leader) + 1):
            follower.branch = self.pages.fork(leader.branch)
            follower.computed = leader.computed
            self.running.insert(place, follower)

    def finish(self, sequence: Sequence) -> None:
        """Give back everything a sequence holds, wherever it is; harmless when repeated."""
        for queue in (self.running, self.waiting, self.parked, sequence.active.followers):
            if sequence in queue:
                queue.remove(sequence)
        if sequence.branch is not None:
            self.pages.release(sequence.branch)
            sequence.branch = None
        if sequence.slot is not None:
            self.free_slots.append(sequence.slot)
            sequence.slot = None
            if sequence.position and sequence.active.family is None:
                usual = self._usual_output or sequence.position
                self._usual_output = usual + USUAL_WEIGHT * (sequence.position - usual)

    def preempt(self, sequence: Sequence) -> None:
        """Release the pages (registered ones stay cached) and wait again, keeping slot, tokens and position."""
        self.running.remove(sequence)
        self.drop(sequence)
        self.preemptions += 1
        self._wait(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Release the pages: what they held is computed again when it is needed."""
        assert sequence.branch is not None
        self.pages.release(sequence.branch)
        sequence.branch = None
        sequence.computed = 0

    def halve(self, works: list[Work]) -> bool:
        """A planned step was too large for the device: its sequences wait again, steps get half as large.

        False, and nothing changes, if it was no larger than one token for every slot.
        """
        rows = sum(work.count for work in works)
        if rows <= self.max_seqs:
            return False
        self.max_batch_tokens = max(self.max_seqs, rows // 2)
        self.requeue(works)
        return True

    def requeue(self, works: list[Work]) -> None:
        """A planned step has not been run: its sequences wait again."""
        for work in works:
            work.sequence.active.followers[:0] = [s for s in work.draws if s is not work.sequence]
            self.preempt(work.sequence)

    def _wait(self, sequence: Sequence) -> None:
        bisect.insort(self.waiting, sequence, key=lambda s: s.key)

    def _make_room(self, sequence: Sequence, take: int) -> bool:
        """Preempt later sequences until `take` tokens fit. False: `sequence` itself had to go."""
        while self.pages.pages_needed(sequence.branch, take) > self.pages.available():
            if self._drop_idle(sequence):
                continue
            victim = self.running[-1]
            self.preempt(victim)
            if victim is sequence:
                return False
        return True

    def _drop_idle(self, needing: Sequence) -> bool:
        """Drop the pages of the branch that matters least and is not running: of the latest request, or of the one in
        need. False: there is none to drop."""
        held = [one for one in self.idle if one is not needing]
        held = [one for one in held if one.active is needing.active or one.key > needing.key]
        if held:
            self.drop(max(held, key=lambda one: one.key))
        return bool(held)

    def _take_slot(self) -> int | None:
        """A free slot, else that of a parked branch, which gets its parameters written anew when it next runs."""
        if self.free_slots:
            return self.free_slots.pop()
        holder = next((one for one in self.parked if one.slot is not None), None)  # idle for longest
        if holder is None:
            return None
        slot, holder.slot, holder.admitted = holder.slot, None, False
        assert slot is not None
        self.taken_slots.append(slot)
        return slot

    def _reserve(self, sequence: Sequence, take: int) -> Work:
        self.pages.append(sequence.branch, take)
        return Work(sequence, take)

    def _next_waiting(self) -> Sequence | None:
        """The first that could run: when no slot is to be had, one that still holds its own."""
        if self.free_slots or any(one.slot is not None for one in self.parked):
            return self.waiting[0]
        return next((sequence for sequence in self.waiting if sequence.slot is not None), None)

    def _admit(self, sequence: Sequence, budget: int) -> Work | None:
        active = sequence.active
        resumed = sequence.branch is not None  # a branch that has its pages still
        if not resumed:
            namespace = self.namespace + active.request.cache_salt.encode()
            sequence.branch = self.pages.new_branch(namespace, self._expected_length(sequence))
            sequence.computed = self.pages.attach_prefix(sequence.branch, sequence.tokens[: sequence.attachable])
        take = min(sequence.needed, budget, self.chunk)
        while True:
            try:
                self.pages.append(sequence.branch, take)
                break
            except OutOfPages:
                if self._drop_idle(sequence):
                    continue
                if not resumed:
                    self.drop(sequence)
                return None
        self.waiting.remove(sequence)
        if sequence.slot is None:  # else it has been preempted and finds what it has computed itself
            sequence.slot = self._take_slot()
            if not resumed and not active.answered:
                active.cached_tokens = max(active.cached_tokens, sequence.computed)
        self.running.append(sequence)
        return Work(sequence, take)

    def _expected_length(self, sequence: Sequence) -> int:
        """A hint for the page allocator: few answers are twice as long as usual, and many requests name no limit."""
        output = sequence.active.request.max_tokens
        if self._usual_output and sequence.active.family is None:
            output = min(output, math.ceil(2 * self._usual_output))
        return max(sequence.prompt_length + output, len(sequence.tokens))

    def _assign_draws(self, work: Work) -> None:
        sequence = work.sequence
        if work.count < sequence.needed or sequence.active.request.max_tokens == 0:
            return
        work.draws.append(sequence)
        sequence.active.answered = True
        followers, sequence.active.followers = sequence.active.followers, []
        for follower in followers:
            if follower.slot is None and self.free_slots:
                follower.slot = self.free_slots.pop()
            if follower.slot is None:
                self._wait(follower)  # comes back through the prefix cache
            else:
                work.draws.append(follower)
