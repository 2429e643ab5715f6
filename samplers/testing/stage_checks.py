"""Checks of stages."""

from __future__ import annotations

import numpy as np
import torch

from samplers.chain import DEFAULT_DRAW, INTERNAL, Chain, Item, resolve
from samplers.contract import Stage
from samplers.stack import SamplerStack
from samplers.testing import state_checks
from samplers.testing.bench import CPU
from samplers.testing.subject import Subject
from samplers.testing.world import World

SHIFT = 8.0


def pure(subject: Subject) -> None:
    """The result is a row of logits; the input stays as it is; the same call gives the same again."""
    bench, _ = subject.started()
    everyone = list(range(subject.count))
    rows = subject.rows(10)
    given = rows.clone()
    shaped = bench.call(given, everyone)
    assert isinstance(shaped, torch.Tensor), f"the result is a {type(shaped).__name__}"
    assert shaped.shape == rows.shape and shaped.dtype == rows.dtype, f"the result is {shaped.dtype} {shaped.shape}"
    subject.same(given, rows, "the input before and after")
    shaped = shaped.clone()
    subject.same(shaped, bench.call(rows.clone(), everyone), "the same call twice")


def numbers(subject: Subject) -> None:
    """Neither NaN nor +inf comes out."""
    bench, _ = subject.started()
    shaped = bench.shape(subject.rows(10), range(subject.count))
    wrong = (shaped.isnan() | (shaped == torch.inf)).any(1)
    assert not bool(wrong.any()), f"{subject.say(int(wrong.nonzero()[0]))}: NaN or infinity"


def masked(subject: Subject) -> None:
    """What is masked stays masked."""
    bench, _ = subject.started()
    rows = subject.rows(10)
    revived = ((rows == -torch.inf) & (bench.shape(rows, range(subject.count)) > -torch.inf)).any(1)
    assert not bool(revived.any()), f"{subject.say(int(revived.nonzero()[0]))}: a masked token came back"


def keeps_one(subject: Subject) -> None:
    """At least one token is left."""
    bench, _ = subject.started()
    empty = ~(bench.shape(subject.rows(10), range(subject.count)) > -torch.inf).any(1)
    assert not bool(empty.any()), f"{subject.say(int(empty.nonzero()[0]))}: nothing is left"


def spoiled(subject: Subject) -> None:
    """Rows that are not numbers, or that earlier masks have emptied, stay recognisable and harm no neighbour."""
    bench, tokens = subject.started()
    rows, everyone = subject.rows(10), range(subject.count)
    whole = bench.shape(rows, everyone)
    bad = rows.clone()
    kinds = {0: ("emptied", -torch.inf), 1: ("NaN", torch.nan), 3: ("infinite", torch.inf)}
    spoilt = torch.zeros(subject.count, dtype=torch.bool)
    for row in everyone:
        if row % 5 in kinds:
            spoilt[row] = True
            bad[row, slice(None) if row % 5 == 0 else 0] = kinds[row % 5][1]
    again, _ = subject.started(tokens=tokens)
    shaped = again.shape(bad, everyone)
    subject.same(
        torch.where(spoilt.unsqueeze(1), 0.0, shaped), torch.where(spoilt.unsqueeze(1), 0.0, whole), "a neighbour"
    )
    for row in spoilt.nonzero().flatten().tolist():
        peak, (name, _) = shaped[row].amax(), kinds[row % 5]
        hidden = peak != -torch.inf if name == "emptied" else peak.abs() < torch.inf or peak == -torch.inf
        assert not bool(hidden), f"{subject.say(row)}: the {name} row comes out with a peak of {peak.item():g}"


def neutral(subject: Subject) -> None:
    """Neutral values are not scheduled, so their rows keep every bit, in a batch with active ones as well."""
    stage = _stage(subject)
    world, internal = subject.plain(), stage.name in INTERNAL
    facts = subject.facts(world)
    values = {param.name: param.neutral for param in stage.params}
    assert internal or stage.is_neutral(values), f"{values} is not neutral"
    for at in range(len(subject.given)):
        assert internal or not stage.is_neutral(subject.values_at(at, world)), f"{subject.say(at)}: these are neutral"
    off = Chain((), Item(DEFAULT_DRAW, {}), False) if internal else resolve(values, world.vocab, facts)
    assert not off.stages, f"{values} schedules {off.stages}"
    count = subject.count
    stack = SamplerStack(2 * count, world.vocab, CPU, facts)
    bench = subject.fresh()
    for slot in range(count):
        subject.admit(bench, slot)
        admission = bench.admissions[slot]
        active = Chain(() if internal else (Item(stage.name, admission.values),), Item(DEFAULT_DRAW, {}), False)
        for place, chain in ((2 * slot, active), (2 * slot + 1, off)):
            stack.admit(
                place,
                chain,
                seed=admission.stream.key,
                choice=admission.stream.choice,
                prompt_ids=admission.prompt_ids,
                ending_ids=admission.ending_ids if chain is active else frozenset(),
                min_tokens=admission.min_tokens,
            )
    rows = subject.rows(10).repeat_interleave(2, 0)
    shaped, failures = stack.shape(rows, np.arange(2 * count), np.zeros(2 * count, np.int64))
    assert not failures, f"the stack reports {next(iter(failures.values()))[1]}"
    subject.same(shaped[1::2], rows[1::2], "a neutral row beside active ones, and its input")
    subject.same(shaped[::2], bench.shape(rows[::2], range(count)), "a row in a stack's mixed batch, and alone")


def renamed(subject: Subject) -> None:
    """Other ids for the same tokens, in history and values as well, change nothing."""
    other = World.shuffled(subject.vocab, torch.Generator().manual_seed(subject.seed))
    _like_plain(subject, other, "tokens under other ids")


def appended(subject: Subject) -> None:
    """A vocabulary with more tokens, all of them masked, changes nothing."""
    _like_plain(subject, World.plain(subject.vocab, more=5), "with masked tokens appended")


def _like_plain(subject: Subject, world: World, what: str) -> None:
    plain, tokens = subject.started()
    other, _ = subject.started(world, tokens)
    everyone, rows = range(subject.count), subject.rows(10)
    shaped = other.call(world.rows(rows), everyone)
    strangers = torch.ones(world.vocab, dtype=torch.bool)
    strangers[world.ids] = False
    assert not bool((shaped[:, strangers] > -torch.inf).any()), f"{what}: a masked one of them came back"
    subject.alike(world.back(shaped), plain.shape(rows, everyone), what)


def shift(subject: Subject) -> None:
    """A constant added to a row does not change its law."""
    bench, tokens = subject.started()
    everyone, rows = range(subject.count), subject.rows(10)
    straight = bench.shape(rows, everyone)
    again, _ = subject.started(tokens=tokens)
    shifted = again.shape(rows + SHIFT, everyone)
    alive = (straight > -torch.inf).any(1, keepdim=True)
    laws = [torch.where(alive, one, 0.0).double().log_softmax(1) for one in (shifted, straight)]
    subject.alike(laws[0], laws[1], f"with {SHIFT:g} added to the row", 1e-3)


def reference(subject: Subject) -> None:
    """The slow formula agrees, wherever it has an opinion."""
    assert subject.reference is not None
    bench, _ = subject.started()
    rows = subject.rows(10)
    everyone = list(range(subject.count))
    shaped = bench.shape(rows, everyone).double()
    for slot in everyone:
        admission = bench.admissions[slot]
        expected = subject.reference(rows[slot].double(), admission, bench.rows_of([slot]))
        expected = torch.where(expected.isnan(), shaped[slot], expected)
        wrong = (shaped[slot] > -torch.inf) != (expected > -torch.inf)
        wrong |= (shaped[slot] - expected).abs() > 1e-4 * (1 + expected.abs())
        if bool(wrong.any()):
            where = f"the sampler and its reference: {subject.say(slot)}"
            at = int(wrong.nonzero()[0])
            raise AssertionError(f"{where}: token {at} is {shaped[slot][at]:.7g} and {expected[at]:.7g}")


def _stage(subject: Subject) -> Stage:
    return subject.sampler  # type: ignore[return-value]


CHECKS = {
    "pure": pure,
    "numbers": numbers,
    "masked": masked,
    "keeps_one": keeps_one,
    "spoiled": spoiled,
    "neutral": neutral,
    "renamed": renamed,
    "appended": appended,
    "shift": shift,
    "batch": state_checks.batch,
    "tree": state_checks.tree,
    "slots": state_checks.slots,
    "prefixes": state_checks.prefixes,
    "speculation": state_checks.speculation,
    "fork": state_checks.fork,
    "resume": state_checks.resume,
    "report": state_checks.report,
    "reference": reference,
}
