"""Basis-aware draws: what is proven is true, and nothing provable is missed."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import linprog

import samplers  # noqa: F401  registers the stages and draws
from engine.runners.torch.attention import register
from engine.runners.torch.head import linear_head
from samplers.basis_aware import thresholds
from samplers.certificate import WORKING, Head, check, prove
from samplers.chain import resolve
from samplers.contract import SamplerError
from samplers.model_facts import ModelFacts
from samplers.stack import SamplerStack
from tests.engine.tiny_models import tiny_model

DELTAS = (1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.4)


def model(vocab: int, hidden: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(head [V, H] fp32, a row of its logits [V])."""
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(vocab, hidden, generator=generator) * torch.linspace(2, 0.2, hidden)
    return head, head @ torch.randn(hidden, generator=generator)


def proven(matrix: torch.Tensor, chances: torch.Tensor, delta: float, tokens: torch.Tensor) -> set[int]:
    count = len(tokens)
    proof = prove(matrix, chances.expand(count, -1), torch.full((count,), delta, dtype=torch.float64), tokens)
    return set(tokens[proof.holds].tolist())


def limit(matrix: torch.Tensor, chances: torch.Tensor, token: int) -> float:
    """The delta below which the token is certified, by a linear program over all tokens."""
    vocab, width = matrix.shape
    p = chances.numpy()
    bounds = [(0, 0) if i == token else (0, None) for i in range(vocab + 1)]
    result = linprog(
        np.eye(vocab + 1)[-1],
        A_ub=np.hstack([np.eye(vocab), -p[:, None]]),
        b_ub=np.zeros(vocab),
        A_eq=np.hstack([matrix.numpy().T, np.zeros((width, 1))]),
        b_eq=matrix.numpy().T @ p,
        bounds=bounds,
        method="highs",
    )
    return 1.0 if result.status == 2 else 1 - 1 / result.x[-1]


# --- certificates


@pytest.mark.parametrize(("vocab", "hidden", "rank"), [(30, 6, 3), (100, 12, 6), (WORKING + 150, 24, 12)])
def test_a_linear_program_agrees(vocab: int, hidden: int, rank: int) -> None:
    compared = Counter[bool]()
    for seed in range(3):
        head, row = model(vocab, hidden, seed)
        matrix, chances = Head(head).reduced(rank), row.double().softmax(0)
        tokens = torch.randperm(vocab, generator=torch.Generator().manual_seed(seed))[:8]
        limits = {token: limit(matrix, chances, token) for token in tokens.tolist()}
        for delta in DELTAS:
            found = proven(matrix, chances, delta, tokens)
            for token, least in limits.items():
                if abs(least - delta) > 1e-6 and chances[token] > 1e-8:  # below that, proofs drown in rounding
                    assert (token in found) == (delta < least), (seed, token, delta, least)
                    compared[token in found] += 1
    assert min(compared[True], compared[False]) > 20


def test_proofs_hold_in_exact_arithmetic() -> None:
    head, row = model(60, 8, 0)
    matrix, chances = Head(head).reduced(5), row.double().softmax(0)
    m = [[Fraction(x) for x in line] for line in matrix.tolist()]
    p = [Fraction(x) for x in chances.tolist()]
    checked = 0
    for delta in DELTAS:
        every = torch.arange(60)
        proof = prove(matrix, chances.expand(60, -1), torch.full((60,), delta, dtype=torch.float64), every)
        for token in every[proof.holds].tolist():
            y = [Fraction(x) for x in proof.y[token].tolist()]
            z = [sum((a * b for a, b in zip(line, y, strict=True)), Fraction(0)) for line in m]
            gain = sum((a * b for a, b in zip(p, z, strict=True)), Fraction(0))
            loss = sum(p[j] * max(Fraction(0), z[j]) for j in range(60) if j != token) / (1 - Fraction(delta))
            assert gain > loss
            checked += 1
    assert checked > 60


def test_more_than_the_threshold_set_less_for_a_higher_threshold_more_for_a_larger_basis() -> None:
    head, row = model(80, 16, 3)
    chances, every = row.double().softmax(0), torch.arange(80)
    before: dict[float, set[int]] = {}
    for rank in (0, 1, 2, 4, 8, 16):
        matrix = Head(head).reduced(rank)
        found = {delta: proven(matrix, chances, delta, every) for delta in DELTAS}
        for delta, accepted in found.items():
            above = set(torch.nonzero(chances > delta).flatten().tolist())
            assert accepted == above if rank == 0 else accepted >= above
            assert accepted >= before.get(delta, set())
        for low, high in pairwise(DELTAS):
            assert found[low] >= found[high]
        before = found
    assert len(before[0.01]) > (chances > 0.01).sum() + 3


def test_a_head_without_a_bottleneck_proves_everything() -> None:
    head, row = model(12, 11, 1)
    assert proven(Head(head).reduced(11), row.double().softmax(0), 0.3, torch.arange(12)) == set(range(12))


def test_three_tokens_and_one_direction_by_hand() -> None:
    """The true row can only be p̂ + t (1, -2, 1): the first token vanishes at t = -0.2, where the second has grown
    fivefold; the second at t = 0.05, where the first has grown by a quarter; the third never."""
    matrix = Head(torch.tensor([[0.0], [1.0], [2.0]])).reduced(1)
    chances = torch.tensor([0.2, 0.1, 0.7], dtype=torch.float64)
    for delta, expected in ((0.199, {0, 1, 2}), (0.201, {0, 2}), (0.799, {0, 2}), (0.801, {2}), (0.999, {2})):
        assert proven(matrix, chances, delta, torch.arange(3)) == expected


def test_a_head_of_lower_rank_keeps_to_the_directions_it_has() -> None:
    head, row = model(50, 4, 2)
    flat = torch.cat([head, head @ torch.randn(4, 8, generator=torch.Generator().manual_seed(0))], 1)
    assert Head(flat).reduced(12).shape == (50, 5)
    chances = row.double().softmax(0)
    for delta in DELTAS:
        assert proven(Head(flat).reduced(12), chances, delta, torch.arange(50)) == proven(
            Head(head).reduced(4), chances, delta, torch.arange(50)
        )


def test_a_wrong_proof_is_refused() -> None:
    head, row = model(40, 6, 5)
    matrix, chances = Head(head).reduced(6), row.double().softmax(0)
    delta = torch.full((40,), 0.9, dtype=torch.float64)
    y = torch.randn(40, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    holds = check(matrix, chances.expand(40, -1), delta, torch.arange(40), y).holds
    assert not (set(torch.nonzero(holds).flatten().tolist()) - proven(matrix, chances, 0.9, torch.arange(40)))
    assert not check(matrix, chances.expand(40, -1), delta, torch.arange(40), 0 * y).holds.any()


# --- the draw


def parameters(count: int, **given: Any) -> dict[str, torch.Tensor]:
    values = {"basis": 0, "basis_eta": 0.015, "basis_epsilon": 0.01, "basis_nucleus": 0.35} | given
    return {name: torch.full((count,), value) for name, value in values.items()}


def test_thresholds_by_their_formulas() -> None:
    chances = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    entropies = torch.tensor([1.75, 2.0], dtype=torch.float64) * np.log(2)
    expected = torch.minimum(torch.tensor(0.3).double(), 0.3**0.5 * (-entropies).exp())
    assert torch.allclose(thresholds(chances, parameters(2, basis_eta=0.3)), expected)
    assert torch.allclose(thresholds(chances, parameters(2, basis=1)), torch.tensor(0.01).double())
    for mass, edges in ((0.35, (0.5, 0.25)), (0.5, (0.5, 0.25)), (0.6, (0.25, 0.25)), (0.8, (0.125, 0.25))):
        delta = thresholds(chances, parameters(2, basis=2, basis_nucleus=mass))
        assert (delta < torch.tensor(edges)).all() and torch.allclose(delta, torch.tensor(edges).double())


def stack_of(head: torch.Tensor, slots: int = 4, **fields: Any) -> SamplerStack:
    facts = ModelFacts(head=head)
    stack = SamplerStack(slots, len(head), torch.device("cpu"), facts)
    chain = resolve({"draw": "basis_aware", **fields}, len(head), facts)
    for slot in range(slots):
        stack.admit(slot, chain, seed=slot, choice=0, prompt_ids=[0])
    return stack


def drawn(stack: SamplerStack, rows: torch.Tensor, slots: list[int], position: int) -> list[int]:
    sampled = stack.sample(rows, np.array(slots), np.full(len(slots), position))
    assert not sampled.failures
    stack.accept(np.array(slots), sampled.tokens)
    return sampled.tokens.tolist()


@pytest.mark.parametrize("fields", [{"basis": "eta", "basis_eta": 0.9}, {"basis": "epsilon", "basis_epsilon": 0.05}])
def test_the_law_is_the_models_on_what_is_accepted(fields: dict[str, Any]) -> None:
    head, row = model(40, 8, 4)
    chances = row.double().softmax(0)
    names = parameters(1, basis=("eta", "epsilon").index(fields["basis"]))
    names |= {name: torch.tensor([value]) for name, value in fields.items() if name != "basis"}
    delta = float(thresholds(chances[None], names))
    accepted = sorted(proven(Head(head).reduced(6), chances, delta, torch.arange(40)))
    assert (chances > delta).sum() < len(accepted) < 40
    stack = stack_of(head, 50, basis_rank=6, basis_tries=100, **fields)
    seen = Counter(
        token for position in range(100) for token in drawn(stack, row.expand(50, -1), list(range(50)), position)
    )
    assert set(seen) <= set(accepted)
    expected = chances[accepted].numpy()
    assert stats.chisquare([seen[i] for i in accepted], expected * (5000 / expected.sum())).pvalue > 1e-6


def test_without_a_basis_it_is_the_plain_threshold_and_the_cap_falls_back_to_the_best() -> None:
    head, row = model(40, 8, 4)
    chances = row.double().softmax(0)
    stack = stack_of(head, 60, basis="epsilon", basis_epsilon=0.1, basis_rank=0, basis_tries=1)
    seen = Counter(token for t in range(50) for token in drawn(stack, row.expand(60, -1), list(range(60)), t))
    above = set(torch.nonzero(chances > 0.1).flatten().tolist())
    assert set(seen) == above
    fallbacks = [stack.tell(slot) for slot in range(60)]
    count, share = sum(one["basis_fallback"] for one in fallbacks), float(chances[chances <= 0.1].sum())
    assert stats.binomtest(count, 3000, share).pvalue > 1e-6
    rejected = float(chances[chances <= 0.1].sum())
    expected = [3000 * (float(chances[i]) + rejected * (i == int(chances.argmax()))) for i in sorted(above)]
    assert stats.chisquare([seen[i] for i in sorted(above)], expected).pvalue > 1e-6


def test_fallbacks_are_counted_per_row_and_undone() -> None:
    head, row = model(40, 8, 4)
    stack = stack_of(head, 1, basis="epsilon", basis_epsilon=0.99, basis_rank=0, basis_tries=1)
    drawn(stack, row[None], [0], 0)
    saved = stack.snapshot(0)
    stack.sample(row.expand(3, -1), np.zeros(3, np.int64), np.arange(1, 4))  # rows of drafts
    assert stack.tell(0) == {"basis_fallback": 4}
    stack.restore(0, saved)
    assert stack.tell(0) == {"basis_fallback": 1}


def test_batches_and_mixed_parameters_do_not_matter() -> None:
    head = model(300, 16, 0)[0]
    rows = (head @ torch.randn(16, 4, generator=torch.Generator().manual_seed(8))).T.contiguous()
    fields: list[dict[str, Any]] = [
        {},
        {"basis": "nucleus", "basis_tries": 30},
        {"basis": "epsilon", "basis_rank": 4},
        {"basis_eta": 0.5, "basis_rank": 0},
    ]
    together, alone = stack_of(head), stack_of(head)
    facts = ModelFacts(head=head)
    for slot, one in enumerate(fields):
        chain = resolve({"draw": "basis_aware", **one}, 300, facts)
        for stack in (together, alone):
            stack.admit(slot, chain, seed=slot, choice=0, prompt_ids=[0])
    for position in range(40):
        expected = drawn(together, rows, [0, 1, 2, 3], position)
        assert [drawn(alone, rows[i : i + 1], [i], position)[0] for i in (2, 0, 3, 1)] == [
            expected[i] for i in (2, 0, 3, 1)
        ]


def test_masked_tokens_are_neither_visited_nor_the_fallback() -> None:
    head, row = model(40, 8, 4)
    row[:35] = -torch.inf
    stack = stack_of(head, 1, basis="epsilon", basis_epsilon=0.9, basis_rank=0, basis_tries=20)
    assert drawn(stack, row[None], [0], 0) == [int(row.argmax())]


# --- what is refused


@pytest.mark.parametrize(
    "fields",
    [{"top_p": 0.9}, {"logit_bias": {"1": 2}}, {"dynatemp_range": 0.1}, {"repetition_penalty": 1.2}, {"min_p": 0.1}],
)
def test_stages_that_change_the_row_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SamplerError, match="'basis_aware' cannot be combined with"):
        resolve({"draw": "basis_aware", **fields}, 40, ModelFacts(head=torch.zeros(40, 8)))


def test_models_and_values_that_do_not_fit_are_refused() -> None:
    facts = ModelFacts(head=torch.zeros(40, 8))
    for given, fields, message in (
        (ModelFacts(), {}, "needs a model"),
        (facts, {"basis": "typical"}, "must be one of eta, epsilon, nucleus"),
        (facts, {"basis_epsilon": 0}, "must be in"),
        (facts, {"basis_tries": 0}, "must be in"),
    ):
        with pytest.raises(SamplerError, match=message):
            resolve({"draw": "basis_aware", **fields}, 40, given)
    resolve({"draw": "basis_aware", "temperature": 1.0, "top_p": 1}, 40, facts)


# --- the model's head


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_a_plain_head_is_reachable(kind: str) -> None:
    register()
    tiny = tiny_model(kind)
    head = linear_head(tiny, 60)
    assert head is not None and head.shape == (60, 32)
    assert head.data_ptr() == tiny.get_output_embeddings().weight.data_ptr()
    ids = torch.tensor([[3, 4, 5]])
    tiny.set_attn_implementation("eager")
    before = tiny(input_ids=ids).logits
    assert linear_head(tiny, 60) is not None
    tiny.set_attn_implementation("eager")
    assert torch.equal(tiny(input_ids=ids).logits, before)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma2", {}),  # final soft-capping
        ("gemma2", {"final_logit_softcapping": 500.0}),
        ("cohere", {"logit_scale": 0.5}),
        ("granite", {"logits_scaling": 2.0}),
        ("phi", {}),  # a bias
    ],
)
def test_a_head_with_anything_behind_it_is_not(kind: str, changes: dict[str, Any]) -> None:
    register()
    tiny = tiny_model(kind, **changes)
    bias = getattr(tiny.get_output_embeddings(), "bias", None)
    if bias is not None:
        torch.nn.init.normal_(bias)
    assert linear_head(tiny, 60) is None
