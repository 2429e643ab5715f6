"""Random operations on pages against a memory that stores one value per slot.

    python -m pytest tests/engine/test_pages_model.py

The value of a slot stands for keys and values: it depends on the namespace and on all tokens up to its position, so a
branch that reads a page of another prefix, namespace or point in time cannot go unnoticed.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine import prefix_cache
from engine.pages import Branch, OutOfPages, Pages

JUNK = "junk"  # the KV of a rejected draft row
MAX_HELD = 6


class Held:
    """A live branch and what it should contain; the last `unwritten` tokens have slots but no KV yet."""

    def __init__(self, branch: Branch, namespace: bytes) -> None:
        self.branch = branch
        self.namespace = namespace
        self.tokens: list[int] = []
        self.unwritten = 0

    @property
    def written(self) -> int:
        return len(self.tokens) - self.unwritten


def kv(namespace: bytes, tokens: list[int]) -> tuple[bytes, tuple[int, ...]]:
    return namespace, tuple(tokens)


class PagesMachine(RuleBasedStateMachine):
    """Steps as the engine takes them: reserve for several branches, drain and execute copies, write, register."""

    hash_bits = 64

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Held] = []
        real, bits = prefix_cache.chain_hash, self.hash_bits
        self.patch = mock.patch.object(prefix_cache, "chain_hash", lambda *a: real(*a) % 2**bits)
        self.patch.start()

    @initialize(num_pages=st.integers(2, 24), size=st.sampled_from([4, 2, 1]), contiguous=st.booleans())
    def start(self, num_pages: int, size: int, contiguous: bool) -> None:
        self.pages = Pages(num_pages, size, contiguous)
        self.memory: list[object] = [None] * (num_pages * size)

    def pick(self, data: st.DataObject, among: list[Held] | None = None) -> Held:
        """By index: a strategy over the branches themselves would keep dead ones, hence their prefixes, alive."""
        among = among or self.held
        return among[data.draw(st.integers(0, len(among) - 1))]

    def reserve(self, held: Held, tokens: list[int]) -> bool:
        """Append, checked against `pages_needed`; False if the pool was exhausted."""
        branch, pages = held.branch, self.pages
        need, available = pages.pages_needed(branch, len(tokens)), pages.available()
        before = self.snapshot(branch)
        try:
            pages.append(branch, len(tokens))
        except OutOfPages:
            assert need > available
            assert self.snapshot(branch) == before
            return False
        assert need <= available and pages.available() == available - need
        held.tokens += tokens
        held.unwritten += len(tokens)
        return True

    def snapshot(self, branch: Branch) -> tuple:
        pages = self.pages
        return (
            branch.pages.copy(),
            branch.length,
            branch.prefixes.copy(),
            branch.starts.copy(),
            pages._ref.copy(),
            pages._copies.copy(),
            pages.free,
            pages.cached,
        )

    def copied(self, copies: list[tuple[int, int]], in_order: bool) -> list[object]:
        size, memory = self.pages.page_size, self.memory.copy()
        for source, target in copies:
            read_from = memory if in_order else self.memory
            memory[target * size : (target + 1) * size] = read_from[source * size : (source + 1) * size]
        return memory

    # ---- operations

    @rule(namespace=st.sampled_from([b"", b"salt"]), tokens=st.lists(st.integers(0, 1), max_size=20))
    def admit(self, namespace: bytes, tokens: list[int]) -> None:
        if len(self.held) == MAX_HELD:
            self.drop(self.held[0])
        held = Held(self.pages.new_branch(namespace), namespace)
        found = self.pages.attach_prefix(held.branch, tokens)
        assert found % self.pages.page_size == 0 and found <= max(0, len(tokens) - 1)
        held.tokens = tokens[:found]
        self.held.append(held)
        self.reserve(held, tokens[found:])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), tail=st.lists(st.integers(0, 1), min_size=1, max_size=3))
    def admit_again(self, data: st.DataObject, tail: list[int]) -> None:
        held = self.pick(data)
        self.admit(held.namespace, held.tokens + tail)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), max_size=6))
    def append(self, data: st.DataObject, tokens: list[int]) -> None:
        self.reserve(self.pick(data), tokens)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), max_size=3))
    def fork(self, data: st.DataObject, tokens: list[int]) -> None:
        """Slots that nobody has written yet must not be shared: they are given up first."""
        parent = self.pick(data)
        self.cut(parent, parent.written)
        child = Held(self.pages.fork(parent.branch), parent.namespace)
        child.tokens = parent.tokens.copy()
        self.held.append(child)
        self.reserve(self.pick(data, [parent, child]), tokens)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        held = self.pick(data)
        self.cut(held, data.draw(st.integers(0, len(held.tokens))))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), back=st.integers(1, 5), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=3))
    def rewrite(self, data: st.DataObject, back: int, tokens: list[int]) -> None:
        held = self.pick(data)
        self.cut(held, max(0, len(held.tokens) - back))
        self.reserve(held, tokens)

    @precondition(lambda self: any(held.written for held in self.held))
    @rule(data=st.data(), back=st.integers(1, 5), token=st.integers(0, 1))
    def rewrite_what_another_left(self, data: st.DataObject, back: int, token: int) -> None:
        """The other holder keeps the cut page registered, goes, and leaves it to the one that cut it."""
        held = self.pick(data, [held for held in self.held if held.written])
        self.cut(held, held.written)
        other = self.pages.fork(held.branch)
        self.cut(held, max(0, held.written - back))
        self.pages.release(other)
        self.reserve(held, [token])

    def cut(self, held: Held, m: int) -> None:
        held.unwritten = max(0, held.unwritten - (len(held.tokens) - m))
        del held.tokens[m:]
        self.pages.truncate(held.branch, m)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.drop(self.pick(data))

    def drop(self, held: Held) -> None:
        self.held.remove(held)
        self.pages.release(held.branch)
        self.pages.release(held.branch)

    @rule(in_order=st.booleans(), register=st.sampled_from([True, True, False]))
    def step(self, in_order: bool, register: bool) -> None:
        """The forward pass: copies first, then every reserved slot is written."""
        self.memory = self.copied(self.pages.drain_copies(), in_order)
        for held in self.held:
            for slot, i in zip(
                self.pages.slots(held.branch, held.written, held.unwritten),
                range(held.written, len(held.tokens)),
                strict=True,
            ):
                self.memory[slot] = kv(held.namespace, held.tokens[: i + 1])
            held.unwritten = 0
            if register:
                self.pages.register(held.branch, held.tokens)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        held = self.pick(data)
        self.pages.register(held.branch, held.tokens[: held.written])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), rows=st.integers(1, 6))
    def speculate(self, data: st.DataObject, rows: int) -> None:
        """A draft tree: reserve, write all rows, keep a path of them, compact, truncate."""
        self.step(False, False)
        held = self.pick(data)
        prefix = held.tokens.copy()
        if not self.reserve(held, [0] * rows):
            return
        path = sorted({0, *data.draw(st.lists(st.integers(0, rows - 1)))})
        drafts = data.draw(st.lists(st.integers(0, 1), min_size=len(path), max_size=len(path)))
        self.memory = self.copied(self.pages.drain_copies(), False)
        scratch = self.pages.slots(held.branch, len(prefix), rows)
        for row, slot in enumerate(scratch):
            depth = path.index(row) + 1 if row in path else 0
            self.memory[slot] = kv(held.namespace, prefix + drafts[:depth]) if depth else JUNK
        source, target = self.pages.compact_slots(held.branch, len(prefix), path)
        assert source.dtype == target.dtype == np.int64
        assert len(source) == sum(a != j for j, a in enumerate(path))
        for slot, value in zip(target, [self.memory[slot] for slot in source], strict=True):
            self.memory[slot] = value
        self.pages.truncate(held.branch, len(prefix) + len(path))
        held.tokens, held.unwritten = prefix + drafts, 0

    @precondition(lambda self: any(held.written for held in self.held))
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """A page turns out to hold rubbish: whoever has it gives up everything, and nobody finds it again."""
        self.step(False, False)
        held = self.pick(data, [held for held in self.held if held.written])
        index = data.draw(st.integers(0, len(held.branch.pages) - 1))
        page, tokens = held.branch.pages[index], held.tokens.copy()
        for other in [other for other in self.held if page in other.branch.pages]:
            self.pages.forget(other.branch, {page})
            self.drop(other)
        assert page in self.pages._free
        size = self.pages.page_size
        self.memory[page * size : (page + 1) * size] = [JUNK] * size
        if len(self.held) < MAX_HELD:
            self.admit(held.namespace, [*tokens, 1])

    # ---- what must hold after each of them

    @invariant()
    def consistent(self) -> None:
        if not hasattr(self, "pages"):
            return
        pages = self.pages
        pages.check_integrity([held.branch for held in self.held])
        assert pages.free + pages.cached + pages.in_use == pages.num_pages - 1
        assert pages.in_use == len({page for held in self.held for page in held.branch.pages})

    @invariant()
    def everyone_reads_its_own_tokens_and_so_does_the_cache(self) -> None:
        if not hasattr(self, "pages"):
            return
        memory = self.copied([(source, target) for target, source in self.pages._copies.items()], False)
        for held in self.held:
            assert held.branch.length == len(held.tokens)
            slots = self.pages.slots(held.branch, 0, held.written)
            expected = [kv(held.namespace, held.tokens[: i + 1]) for i in range(held.written)]
            assert [memory[slot] for slot in slots] == expected
            start = held.written // 3
            assert [slot for run in self.pages.runs(held.branch, start, held.written) for slot in range(*run)] == [
                *slots[start:]
            ]
        size = self.pages.page_size
        for page, prefix in self.pages._cache.registered.items():
            chunks = []
            while prefix.parent is not None:
                chunks.append(np.frombuffer(prefix.tokens, np.int32).tolist())
                prefix = prefix.parent
            tokens = [token for chunk in reversed(chunks) for token in chunk]
            expected = [kv(prefix.tokens, tokens[: i + 1]) for i in range(len(tokens) - size, len(tokens))]
            assert memory[page * size : (page + 1) * size] == expected

    def teardown(self) -> None:
        self.patch.stop()
        if hasattr(self, "pages"):
            for held in self.held:
                self.pages.release(held.branch)
            self.pages.check_integrity([])
            assert self.pages.in_use == 0


class CollidingMachine(PagesMachine):
    """The same with a hash of three bits: nearly everything collides, nothing may be mistaken."""

    hash_bits = 3


@pytest.mark.parametrize("machine", [PagesMachine, CollidingMachine])
def test_pages_agree_with_a_memory_of_values(machine: type[PagesMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
