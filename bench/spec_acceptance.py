"""How often one of several drafts for a position is accepted, beside the most that any rule could accept of drafts of
that law: `drafthouse bench spec --part acceptance`.

Rows of the target and of the draft model at places of texts that the target has written, at temperature 1. Measured:
drafts are drawn and verified as in the engine. Expected: the closed form of the rule on the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from bench import estimates
from bench.claims import Claim
from bench.estimates import Array, Figure
from bench.progress import Begin, Done
from bench.sampler_runs import Sampling
from bench.spec_rig import Drafting, Pair, Rig
from bench.spec_texts import TASKS, Place, chain_at, places, prompts
from spec_decode.theory import kseq, one_draft, optimum, siblings

TEMPERATURE = 1.0
COUNTS = (2, 4, 8)
WITHIN = 0.01  # of its optimum, greedy multi-draft's target
_ROUNDING = 1e-9
Formula = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """How much is drawn."""

    prompts: int = 64  # of each task
    places: int = 4  # of each prompt
    tokens: int = 96  # of the target's texts, at most
    turns: int = 64  # drafts at each place
    verified: int = 4  # times each


FULL = Size()
QUICK = Size(prompts=16, places=4, tokens=48, turns=16)


@dataclass(frozen=True)
class Row:
    """A rule on drafts of a law, so many at a position. Figures are means over places."""

    rule: str
    law: str
    drafts: int
    measured: Figure
    expected: Figure | None  # None: no formula that can be computed here
    optimum: Figure | None
    reached: Figure | None  # measured over optimum


@dataclass
class Acceptance:
    """Everything that was measured."""

    size: Size
    rows: dict[str, list[Row]] = field(default_factory=dict)  # by task
    claims: list[Claim] = field(default_factory=list)


@dataclass(frozen=True)
class _Case:
    """Drafts of a law, the rules that are tried on them, and what is known about these."""

    law: str
    drafts: int
    rules: dict[str, Formula | None]
    optimum: Formula | None


def _cases() -> list[_Case]:
    def of(formula: Callable[[Tensor, Tensor, int], Tensor], drafts: int) -> Formula:
        return lambda p, q: formula(p, q, drafts)

    cases = [_Case("auto", 1, {"token": one_draft.tested, "block": one_draft.tested}, one_draft.tested)]
    for n in COUNTS:
        independent: dict[str, Formula | None] = {
            "rrs": of(siblings.rejection_with_replacement, n),
            "kseq": of(kseq.acceptance, n),
        }
        pairs = of(optimum.without_replacement, n) if n == 2 else None  # the formula for more is too slow
        greedy = of(siblings.greedy, n)
        cases += [
            _Case("iid", n, independent, of(optimum.with_replacement, n)),
            _Case("swor", n, {"rrs": None}, pairs),
            _Case("hu", n, {"hu": greedy}, greedy),
        ]
    return cases


class Measuring:
    """The embedded pair."""

    def __init__(self, sampling: Sampling, size: Size) -> None:
        self._sampling, self._size = sampling, size
        self._chain = chain_at(sampling, TEMPERATURE)

    def measure(self, begin: Begin, done: Done) -> Acceptance:
        """Raises Failed."""
        size, cases = self._size, _cases()
        begin(len(TASKS) * (size.prompts + len(cases) * size.turns))
        found, pair = Acceptance(size), Pair(size.prompts * size.places)
        for task in TASKS:
            asked = prompts(self._sampling, task, size.prompts)
            at = places(self._sampling, asked, TEMPERATURE, size.places, size.tokens, done)
            rig = Rig(pair, at, TEMPERATURE, self._chain)
            p, q = rig.draft_position(Drafting.of((-1,)), 0).first_rows()
            rows = found.rows[task] = []
            for case in cases:
                made, claims = _measure(task, rig, p, q, case, size, done)
                rows += made
                found.claims += claims
        return found


def _measure(
    task: str, rig: Rig, p: Tensor, q: Tensor, case: _Case, size: Size, done: Done
) -> tuple[list[Row], list[Claim]]:
    """p, q: [places, V] rows of the target and of the draft model."""
    accepted = {rule: np.zeros(len(rig.places)) for rule in case.rules}
    drafting = Drafting.of((-1,) * case.drafts, case.law)
    for turn in range(size.turns):
        drafts = rig.draft_position(drafting, turn)
        for rule, total in accepted.items():
            for again in range(size.verified):
                total += drafts.verify(rule, turn * size.verified + again).n_acc
        done()
    best = None if case.optimum is None else by_prompt(rig.places, case.optimum(p, q).cpu().numpy())
    rows = []
    for rule, formula in case.rules.items():
        measured = by_prompt(rig.places, accepted[rule] / (size.turns * size.verified))
        rows.append(
            Row(
                rule,
                case.law,
                case.drafts,
                estimates.mean(measured, seed=9),
                None if formula is None else estimates.mean(by_prompt(rig.places, formula(p, q).cpu().numpy()), seed=9),
                None if best is None else estimates.mean(best, seed=9),
                None if best is None else ratio(measured, best),
            )
        )
    return rows, _claims(task, case, rows, p, q)


def _claims(task: str, case: _Case, rows: list[Row], p: Tensor, q: Tensor) -> list[Claim]:
    if case.law == "hu":
        [row] = rows
        assert row.reached is not None
        text = f"{task}, {case.drafts} drafts: greedy multi-draft's acceptance is within 1 % of its optimum"
        return [Claim.of_target(text, row.reached, 1 - WITHIN, f"{row.reached.text(2, 100)} % of it")]
    if case.law == "iid":
        less = (
            kseq.acceptance(p, q, case.drafts) < siblings.rejection_with_replacement(p, q, case.drafts) - 1e-9
        ).cpu()
        text = f"{task}, {case.drafts} drafts: K-SEQ accepts at least what recursive rejection does, at every place"
        return [Claim.of_all(text, len(less), [f"place {at}" for at in less.nonzero()[:, 0].tolist()])]
    return []


def by_prompt(at: Sequence[Place], values: Array) -> Array:
    """[prompts] means over the places of each. values: [places]."""
    numbers = np.array([place.prompt for place in at])
    return np.bincount(numbers, values) / np.bincount(numbers)


def ratio(above: Array, below: Array) -> Figure:
    """Of two means over prompts, which are resampled together. above, below: [prompts]."""
    return estimates.bootstrap(lambda chosen: float(above[chosen].mean() / below[chosen].mean()), len(above), seed=9)
