"""Checks of what a sampler remembers, the same for stages and draws."""

from __future__ import annotations

import json

import torch

from samplers.chain import INTERNAL, resolve
from samplers.testing.subject import Subject


def batch(subject: Subject) -> None:
    """A row alone, in another order, in half a batch: the same row."""
    bench, _ = subject.started()
    rows, everyone = subject.rows(10), list(range(subject.count))
    together = bench.probe(rows, everyone)
    alone = torch.cat([bench.probe(rows[i : i + 1], [i]) for i in everyone])
    subject.same(together, alone, "a row in a batch and alone")
    backwards = bench.probe(rows.flip(0), everyone[::-1]).flip(0)
    subject.same(together, backwards, "two orders of the rows")
    half = subject.count // 2
    split = torch.cat([bench.probe(rows[:half], everyone[:half]), bench.probe(rows[half:], everyone[half:])])
    subject.same(together, split, "a batch and its halves")


def tree(subject: Subject) -> None:
    """A slot may have several rows in one call, as in a draft tree."""
    bench, _ = subject.started()
    one, other, everyone = subject.rows(10), subject.rows(11), list(range(subject.count))
    both = bench.probe(torch.cat([one, other]), everyone + everyone)
    apart = torch.cat([bench.probe(one, everyone), bench.probe(other, everyone)])
    subject.same(both[: len(one)], apart[: len(one)], "two rows of a slot in one call and apart")
    subject.same(both[len(one) :], apart[len(one) :], "two rows of a slot in one call and apart")


def slots(subject: Subject) -> None:
    """A slot knows nothing of its last owner, nor of its neighbours."""
    fresh, tokens = subject.started()
    rows, everyone = subject.rows(10), list(range(subject.count))
    used = subject.fresh()
    for slot in everyone:
        subject.admit(used, slot, owner=slot + 1)
    used.advance(everyone, subject.rows(20))
    for slot in everyone[::2]:
        used.free(slot)
        subject.admit(used, slot)
    used.advance(everyone[1::2], subject.rows(21)[1::2])
    for slot in everyone[1::2]:
        used.free(slot)
        subject.admit(used, slot)
    for step, drawn in enumerate(tokens):  # even and odd slots take turns
        for part in (slice(0, None, 2), slice(1, None, 2)):
            used.advance(everyone[part], subject.rows(step)[part], drawn[part])
    subject.same(used.probe(rows, everyone), fresh.probe(rows, everyone), "a reused slot and a fresh one")


def prefixes(subject: Subject) -> None:
    """Drafts that were accepted and taken back leave nothing behind, however often."""
    bench, tokens = subject.started()
    everyone, rows = list(range(subject.count)), subject.rows(10)
    outer = [bench.snapshot(slot) for slot in everyone]
    bench.advance(everyone, subject.rows(30))
    inner = [bench.snapshot(slot) for slot in everyone]
    bench.advance(everyone, subject.rows(31))
    bench.advance(everyone, subject.rows(32))
    for slot in everyone:
        bench.restore(slot, inner[slot])
    bench.advance(everyone, subject.rows(33))
    for slot in everyone:
        bench.restore(slot, outer[slot])
    fresh, _ = subject.started(tokens=tokens)
    subject.same(bench.probe(rows, everyone), fresh.probe(rows, everyone), "after restore and never drafted")
    for slot in everyone[::2]:  # the same snapshot again, and only for some
        bench.restore(slot, outer[slot])
    fresh, _ = subject.started(tokens=tokens)
    last = bench.advance(everyone, subject.rows(34))
    fresh.advance(everyone, subject.rows(34), last)
    subject.same(bench.probe(rows, everyone), fresh.probe(rows, everyone), "after restore, one token later")


def speculation(subject: Subject) -> None:
    """Drafts are tried and taken back, then some of them are committed without the rows being shown again."""
    bench, tokens = subject.started()
    everyone, rows = list(range(subject.count)), subject.rows(10)
    before = [bench.snapshot(slot) for slot in everyone]
    drafts = [bench.advance(everyone, subject.rows(salt)) for salt in (30, 31, 32)]
    bench.probe(subject.rows(33), everyone)
    for slot in everyone:
        bench.restore(slot, before[slot])
    fresh, _ = subject.started(tokens=tokens)
    for salt, draft in ((30, drafts[0]), (31, drafts[1])):
        bench.accept(everyone, draft)
        fresh.advance(everyone, subject.rows(salt), draft)
    subject.same(bench.probe(rows, everyone), fresh.probe(rows, everyone), "after two accepted drafts, and two tokens")


def fork(subject: Subject) -> None:
    """A child goes on as its parent would have, and neither disturbs the other."""
    count = subject.count
    parents, children = list(range(count)), list(range(count, 2 * count))
    bench, tokens = subject.started(slots=2 * count)
    for slot in children:  # taken before, by somebody else
        subject.admit(bench, slot, owner=slot + 1)
    bench.advance(children, subject.rows(20))
    for slot in children:
        bench.free(slot)
    for parent, child in zip(parents, children, strict=True):
        bench.fork(parent, child)
    of_parents = bench.advance(parents, subject.rows(30))
    of_children = bench.advance(children, subject.rows(31))
    rows = subject.rows(10)
    for name, slots_, salt, drawn in (("parent", parents, 30, of_parents), ("child", children, 31, of_children)):
        fresh, _ = subject.started(tokens=tokens)
        fresh.advance(parents, subject.rows(salt), drawn)
        if name == "child":  # its parent has gone, and its slot has a new owner
            for slot in parents:
                bench.free(slot)
                subject.admit(bench, slot, owner=slot + 2)
            bench.advance(parents, subject.rows(22))
        subject.same(bench.probe(rows, slots_), fresh.probe(rows, parents), f"the {name} and who never forked")


def resume(subject: Subject) -> None:
    """Admission with what was generated equals having accepted it."""
    bench, tokens = subject.started()
    resumed = subject.fresh()
    everyone, rows = list(range(subject.count)), subject.rows(10)
    for slot in everyone:
        subject.admit(resumed, slot, output=[step[slot] for step in tokens])
    subject.same(resumed.probe(rows, everyone), bench.probe(rows, everyone), "resumed and never interrupted")


def report(subject: Subject) -> None:
    """What a response says was used can be sent back, as JSON."""
    sampler, world = subject.sampler, subject.plain()
    if sampler.name in INTERNAL:
        return
    facts = subject.facts(world)
    for at in range(len(subject.given)):
        item = {"name": sampler.name, **subject.values_at(at, world)}
        chain = resolve({"sampler": item}, world.vocab, facts)
        sent = json.loads(json.dumps(chain.report()))
        again = resolve({"sampler": sent}, world.vocab, facts)
        assert (again.stages, again.draw) == (chain.stages, chain.draw), (
            f"{subject.say(at)} resolves to {chain.report()}, and that to {again.report()}"
        )
