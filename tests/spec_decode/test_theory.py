"""Closed forms of acceptance against all outcomes of the rules, and optima against linear programs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from samplers.rng import Purpose
from spec_decode.theory import chains, kseq, one_draft, optimum, siblings
from spec_decode.verify.reference import LOSSLESS, Draft, Number
from tests.spec_decode import drafters
from tests.spec_decode.drafters import Siblings, static, table
from tests.spec_decode.enumeration import Explorer, Step, accepted, law, shared
from tests.spec_decode.trees import noise_of

EXACT = 1e-12
SEEDS = range(6)


def rows(seed: int, vocab: int) -> tuple[Tensor, Tensor]:
    """The first rows of a target and a drafter."""
    p, q = (torch.tensor(table(model, vocab)(()), dtype=torch.float64) for model in (2 * seed, 2 * seed + 1))
    return p, q


def enumerated(seed: int, vocab: int, rule: str, draft_law: Siblings, count: int) -> Number:
    drafter = static(table(2 * seed + 1, vocab), draft_law, [count])
    return accepted(table(2 * seed, vocab), drafter, LOSSLESS[rule])[0]


def draft_law_of(q: Tensor, draft_law: Siblings, count: int) -> dict[tuple[int, ...], float]:
    """Joint law of drafted tokens."""

    def program(run: Explorer) -> tuple[int, ...]:
        drafts = static(lambda _: q.tolist(), draft_law, [count])((), Step(run, 0).pick)
        return tuple(draft.token for draft in drafts)

    return {drafts: float(weight) for drafts, weight in law(program).items()}


# --- acceptance of a rule

FORMS: dict[str, tuple[Callable[[Tensor, Tensor, int], Tensor], str, Siblings, tuple[int, ...]]] = {
    "token": (lambda p, q, n: one_draft.tested(p, q), "token", drafters.iid, (1,)),
    "block": (lambda p, q, n: 1 - one_draft.distance(p, q), "block", drafters.iid, (1,)),
    "match": (lambda p, q, n: one_draft.matched(p, q), "match", drafters.iid, (1,)),
    "one-hot": (lambda p, q, n: siblings.certain(p, q.topk(n).indices), "traversal", drafters.topk, (1, 2, 3)),
    "rrs, iid": (siblings.rejection_with_replacement, "rrs", drafters.iid, (1, 2, 3)),
    "rrs, swor": (siblings.rejection_without_replacement, "rrs", drafters.swor, (1, 2, 3)),
    "kseq": (kseq.acceptance, "kseq", drafters.iid, (1, 2, 3)),
    "hu": (siblings.greedy, "hu", drafters.hu, (1, 2, 3, 4)),
    "hu, certain first": (
        lambda p, q, n: siblings.greedy(p, q, n, drawn_first=False),
        "rrs",
        drafters.hu_certain_first,
        (1, 2, 3, 4),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_acceptance_has_its_closed_form(form: str) -> None:
    formula, rule, draft_law, counts = FORMS[form]
    for seed, count in product(SEEDS, counts):
        p, q = rows(seed, 4)
        assert abs(formula(p, q, count) - enumerated(seed, 4, rule, draft_law, count)) < EXACT


@pytest.mark.parametrize("form", FORMS)
def test_closed_forms_take_any_number_of_rows(form: str) -> None:
    formula, *_, counts = FORMS[form]
    pairs = [rows(seed, 4) for seed in SEEDS]
    p, q = (torch.stack(side).reshape(2, 3, 4) for side in zip(*pairs, strict=True))
    together = formula(p, q, counts[-1])
    assert together.shape == (2, 3)
    for one, (left, right) in zip(together.flatten(), pairs, strict=True):
        assert abs(one - formula(left, right, counts[-1])) < EXACT


def test_zeros_in_rows() -> None:
    p = torch.tensor([0.0, 0.5, 0.5, 0.0], dtype=torch.float64)
    q = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    for formula, *_ in FORMS.values():
        assert formula(p, p, 1) <= 1 + EXACT
        assert formula(p, q, 1) < EXACT
    assert siblings.rejection_without_replacement(p, p, 3) == 1
    assert siblings.greedy(p, p, 3) == 1
    for best in (optimum.with_replacement, optimum.without_replacement):
        for count in (1, 2, 3):
            assert best(p, q, count) == 0
            assert best(p, p, count) == 1


def test_lengths_of_chains() -> None:
    """Averaged over drafts; and the geometric series where every draft is accepted alike."""
    for seed, (rule, formula) in product(SEEDS, [("token", chains.token_length), ("block", chains.block_length)]):
        target, draft = table(2 * seed, 3), table(2 * seed + 1, 3)
        mean = 0.0
        for tokens in product(range(3), repeat=3):
            p, q = (
                torch.tensor([model(tokens[:i]) for i in range(3)], dtype=torch.float64) for model in (target, draft)
            )
            weight = prod(float(q[i, token]) for i, token in enumerate(tokens))
            mean += weight * float(formula(p, q, torch.tensor(tokens)))
        expected = accepted(target, static(draft, drafters.iid, [1, 1, 1]), LOSSLESS[rule])[1]
        assert abs(mean - expected) < EXACT
    p, q = rows(0, 3)
    alike = static(lambda _: q.tolist(), drafters.iid, [1, 1, 1])
    expected = accepted(lambda _: p.tolist(), alike, LOSSLESS["token"])[1]
    assert abs(one_draft.emitted(float(one_draft.tested(p, q)), 3) - 1 - expected) < EXACT


# --- shared noise


def test_shared_uniforms() -> None:
    for seed in SEEDS:
        p, q = rows(seed, 4)

        def program(run: Explorer, p: Tensor = p, q: Tensor = q) -> bool:
            step = Step(run, 0, shared)
            token = step.pick(0, q.tolist())
            return LOSSLESS["match"]([Draft(token, -1, q.tolist())], [p.tolist(), p.tolist()], step).place == 0

        assert abs(one_draft.matched_uniform(p, q) - law(program)[True]) < EXACT


def test_shared_gumbel_noise() -> None:
    count = 100_000
    for seed in SEEDS:
        p, q = rows(seed, 4)
        noise = noise_of(np.full(count, seed), np.arange(count)).per_token(Purpose.NOISE, 4)
        race = -np.log(noise)  # the smallest of these over the row is the plain draw's token
        hits = ((race / p.numpy()).argmin(1) == (race / q.numpy()).argmin(1)).mean()
        found, distance = one_draft.matched_gumbel(p, q), one_draft.distance(p, q)
        assert abs(hits - found) < 5 * np.sqrt(0.25 / count)
        assert (1 - distance) / (1 + distance) - EXACT <= found <= 1 - distance + EXACT


# --- optima


def linear_program(p: Tensor, draft_law: dict[tuple[int, ...], float]) -> float:
    """The best coupling of drafts with the token that is emitted."""
    vocab, drafts = len(p), list(draft_law)
    gain = np.array([[token in tokens for token in range(vocab)] for tokens in drafts], float)
    sums = np.zeros((len(drafts) + vocab, len(drafts), vocab))
    for i in range(len(drafts)):
        sums[i, i, :] = 1
    for token in range(vocab):
        sums[len(drafts) + token, :, token] = 1
    found = linprog(
        -gain.ravel(), A_eq=sums.reshape(len(sums), -1), b_eq=[*draft_law.values(), *p.tolist()], method="highs"
    )
    return float(-found.fun)


@pytest.mark.parametrize("draft_law", ["iid", "swor", "hu", "topk", "hu_certain_first", "swor_then_certain"])
def test_the_optimum_is_that_of_a_linear_program(draft_law: str) -> None:
    for seed, (vocab, count) in product(range(2), [(5, 1), (5, 2), (4, 3)]):
        p, q = rows(seed, vocab)
        found = draft_law_of(q, getattr(drafters, draft_law), count)
        best = optimum.of_law(p.tolist(), found)
        assert abs(best - linear_program(p, found)) < 1e-9  # what the solver promises


def test_the_optimum_for_drafts_of_one_row_is_among_its_prefixes() -> None:
    for seed, count in product(SEEDS, (1, 2, 3)):
        p, q = rows(seed, 5)
        best = optimum.of_law(p.tolist(), draft_law_of(q, drafters.iid, count))
        assert abs(optimum.with_replacement(p, q, count) - best) < EXACT
        best = optimum.of_law(p.tolist(), draft_law_of(q, drafters.swor, count))
        assert abs(optimum.without_replacement(p, q, count) - best) < (EXACT if count < 3 else 1e-7)


def test_the_greedy_construction_reaches_its_optimum() -> None:
    for seed, count in product(SEEDS, (1, 2, 3)):
        p, q = rows(seed, 5)
        best = optimum.of_law(p.tolist(), draft_law_of(q, drafters.hu, count))
        assert abs(siblings.greedy(p, q, count) - best) < EXACT
        assert siblings.greedy(p, q, count, drawn_first=False) <= best + EXACT


def test_no_rule_exceeds_the_optimum() -> None:
    for seed, count, (rule, draft_law) in product(
        SEEDS,
        (2, 3),
        [("rrs", "iid"), ("kseq", "iid"), ("traversal", "swor"), ("rrs", "swor"), ("match", "iid"), ("hu", "merged")],
    ):
        p, q = rows(seed, 4)
        best = optimum.of_law(p.tolist(), draft_law_of(q, getattr(drafters, draft_law), count))
        assert enumerated(seed, 4, rule, getattr(drafters, draft_law), count) <= best + EXACT


# --- K-SEQ


def test_kseq_is_valid_and_within_its_guarantee() -> None:
    random = torch.Generator().manual_seed(0)
    for vocab, count in product((2, 5, 60), (1, 2, 3, 8)):
        p, q = torch.rand(2, 200, vocab, generator=random, dtype=torch.float64).pow(4).unbind()
        p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
        found = kseq.factor(p, q, torch.full((200,), count))
        assert ((found.rho >= 1) & (found.rho <= count)).all()
        assert (found.accepted <= found.rho * found.beta + EXACT).all()
        assert (kseq.residual(p, q, found) >= -EXACT).all()
        best = optimum.with_replacement(p, q, count)
        assert (found.accepted <= best + EXACT).all()
        assert (found.accepted >= (1 - (1 - 1 / count) ** count) * best - EXACT).all()
        assert (found.accepted >= siblings.rejection_with_replacement(p, q, count) - 1e-9).all()


# --- which rule accepts more


@pytest.mark.parametrize("seed", range(12))
def test_dominance(seed: int) -> None:
    """Block over token is proved; the others have held on every instance tried."""
    target, draft = table(100 + seed, 3), table(200 + seed, 3)

    def length(draft_law: Siblings, branching: list[int], rule: str) -> Number:
        return accepted(target, static(draft, draft_law, branching), LOSSLESS[rule])[1]

    assert length(drafters.iid, [1, 1, 1], "block") >= length(drafters.iid, [1, 1, 1], "token") - EXACT
    for draft_law in (drafters.iid, drafters.swor, drafters.hu):
        for branching in ([2], [2, 1]):
            assert length(draft_law, branching, "traversal") >= length(draft_law, branching, "rrs") - EXACT
    p, q = (torch.tensor(model(()), dtype=torch.float64) for model in (target, draft))
    for count in (2, 3):
        more = optimum.without_replacement(p, q, count) - optimum.with_replacement(p, q, count)
        assert more >= -1e-7
