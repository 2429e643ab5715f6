"""Checks of draws."""

from __future__ import annotations

import torch
from torch import Tensor

from samplers.rng import Stream
from samplers.testing import state_checks
from samplers.testing.subject import Subject

SAMPLES = 3000
LEAST = 1e-6  # p-value below which a law is refused
_LAW_VOCABULARY = 17  # larger ones would need more samples to say anything


def pure(subject: Subject) -> None:
    """The result is one id per row; the input stays as it is; the same call gives the same again."""
    bench, _ = subject.started()
    everyone, rows = list(range(subject.count)), subject.rows(10)
    given = rows.clone()
    drawn = bench.call(given, everyone)
    assert isinstance(drawn, torch.Tensor), f"the result is a {type(drawn).__name__}"
    assert drawn.shape == rows.shape[:1] and drawn.dtype == torch.int64, f"the result is {drawn.dtype} {drawn.shape}"
    subject.same(given, rows, "the input before and after")
    drawn = drawn.clone().unsqueeze(1)
    subject.same(drawn, bench.call(rows.clone(), everyone).unsqueeze(1), "the same call twice")


def masked(subject: Subject) -> None:
    """No masked token is drawn."""
    bench, _ = subject.started()
    for salt in range(10, 12 if subject.vocab > 1000 else 40):
        rows = subject.rows(salt)
        drawn = bench.pick(rows, range(subject.count))
        assert bool((drawn >= 0).all()), "a token that does not exist was drawn"
        wrong = rows.gather(1, drawn.unsqueeze(1)).squeeze(1) == -torch.inf
        assert not bool(wrong.any()), f"{subject.say(int(wrong.nonzero()[0]))}: a masked token was drawn"


def law(subject: Subject) -> None:
    """Over many seeds, two tokens in a row are drawn as often as the rows' softmax says."""
    if not 3 <= subject.vocab <= _LAW_VOCABULARY:
        return
    slots, rows = range(SAMPLES), subject.rows(10)
    bench = subject.fresh(slots=SAMPLES)
    for at in range(len(subject.given)):
        values = subject.values_at(at, bench.world)
        for slot in slots:
            bench.free(slot)
            bench.admit(slot, values, [0], stream=Stream(slot + (at + 1) * SAMPLES, 0))
        first, second = ((0, 1), (2, 0), (7, 8))[at % 3]  # kinds of rows
        one = torch.tensor(bench.advance(slots, rows[first].expand(SAMPLES, -1)))
        other = torch.tensor(bench.advance(slots, rows[second].expand(SAMPLES, -1)))
        seen = torch.bincount(one * subject.vocab + other, minlength=subject.vocab**2)
        expected = torch.outer(rows[first].double().softmax(0), rows[second].double().softmax(0)).flatten()
        chance = chi_square(seen, expected)
        assert chance > LEAST, f"{subject.say(at)}: two tokens in a row: chi-square p = {chance:.1e}"


def seeded(subject: Subject) -> None:
    """Seed, choice and position decide, each of them."""
    if subject.vocab < _LAW_VOCABULARY:
        return
    flat = torch.zeros(64, subject.vocab)
    slots = range(64)

    def drawn(seed: int, choice: int, steps: int) -> list[int]:
        bench = subject.fresh(slots=64)
        for slot in slots:
            values = subject.values_at(0, bench.world)
            bench.admit(slot, values, [0], stream=Stream(slot * 1001 + seed, choice))
        for _ in range(steps):
            bench.advance(slots, flat)
        return bench.pick(flat, slots).tolist()

    base = drawn(5, 0, 0)
    assert drawn(5, 0, 0) == base, "the same seed, choice and position gave another token"
    for what, other in (("seed", (6, 0, 0)), ("choice", (5, 1, 0)), ("position", (5, 0, 1))):
        assert drawn(*other) != base, f"another {what} gave the same 64 tokens"


def speculation(subject: Subject) -> None:
    """The rows of a chain of drafts, drawn from in one call, give the tokens they give one after the other."""
    bench, tokens = subject.started()
    everyone, drafts = list(range(subject.count)), (30, 31, 32)
    fresh, _ = subject.started(tokens=tokens)
    one_by_one = [fresh.advance(everyone, subject.rows(salt)) for salt in drafts]
    rows = torch.stack([subject.rows(salt) for salt in drafts], 1).flatten(0, 1)
    at_once = bench.pick(rows, [slot for slot in everyone for _ in drafts], [0, 1, 2] * subject.count)
    subject.same(
        at_once.view(-1, len(drafts)), torch.tensor(one_by_one).T, "a chain of drafts in one call, and in three"
    )
    for accepted in one_by_one[:2]:
        bench.accept(everyone, accepted)
    again, _ = subject.started(tokens=tokens)
    for salt, accepted in zip(drafts[:2], one_by_one[:2], strict=True):
        again.advance(everyone, subject.rows(salt), accepted)
    last = subject.rows(10)
    subject.same(bench.probe(last, everyone), again.probe(last, everyone), "after two accepted drafts, and two tokens")


def shift(subject: Subject) -> None:
    """A constant added to a row does not change what is drawn."""
    bench, _ = subject.started()
    everyone, rows = range(subject.count), subject.rows(10)
    subject.same(bench.probe(rows + 8, everyone), bench.probe(rows, everyone), "with 8 added to the row")


def reference(subject: Subject) -> None:
    """The slow formula draws the same."""
    assert subject.reference is not None
    bench, _ = subject.started()
    rows = subject.rows(10)
    drawn = bench.pick(rows, range(subject.count)).tolist()
    for slot, token in enumerate(drawn):
        expected = subject.reference(rows[slot].double(), bench.admissions[slot], bench.rows_of([slot]))
        assert token == expected, f"{subject.say(slot)}: drew {token}, its reference {expected}"


def chi_square(seen: Tensor, law: Tensor) -> float:
    """The probability of counts as far from a law as these. seen: [K] counts; law: [K] sums to 1.

    Outcomes expected fewer than five times are taken together; what has no probability must not occur at all.
    """
    if int(seen[law == 0].sum()):
        return 0.0
    expected = law.double() * seen.sum()
    order = expected.argsort(descending=True)
    expected, counts = expected[order], seen[order].double()
    large = int((expected >= 5).sum())
    cells = [*zip(counts[:large].tolist(), expected[:large].tolist(), strict=True)]
    if large < len(expected):
        rest = (counts[large:].sum().item(), expected[large:].sum().item())
        if rest[1] >= 5 or not cells:
            cells.append(rest)
        else:
            cells[-1] = (cells[-1][0] + rest[0], cells[-1][1] + rest[1])
    if len(cells) < 2:
        return 1.0
    statistic = sum((count - wanted) ** 2 / wanted for count, wanted in cells)
    freedom = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)))


CHECKS = {
    "pure": pure,
    "masked": masked,
    "law": law,
    "seeded": seeded,
    "shift": shift,
    "batch": state_checks.batch,
    "tree": state_checks.tree,
    "slots": state_checks.slots,
    "prefixes": state_checks.prefixes,
    "speculation": speculation,
    "fork": state_checks.fork,
    "resume": state_checks.resume,
    "report": state_checks.report,
    "reference": reference,
}
