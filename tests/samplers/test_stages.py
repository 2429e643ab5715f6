"""Every stage against its formula, written out slowly, and the properties all stages share."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from samplers.contract import Rows
from samplers.registry import STAGES
from samplers.rng import Noise

INF = math.inf
TRUNCATIONS = {"top_k": 3, "top_p": 0.7, "min_p": 0.2}
values = st.one_of(st.floats(-20, 20, width=32), st.sampled_from([0.0, 1.0, 2.0]), st.just(-INF))
any_row = st.lists(values, min_size=2, max_size=60).filter(lambda row: max(row) > -INF)


def shape(name: str, row: torch.Tensor, value: float) -> torch.Tensor:
    """The stage alone on rows [R, V] with one parameter value."""
    count = len(row)
    kind = torch.int64 if name == "top_k" else torch.float32
    zeros = np.zeros(count, np.int64)
    rows = Rows(torch.arange(count), torch.from_numpy(zeros), Noise(zeros, zeros, zeros))
    return STAGES.get(name).shape(row, {name: torch.full((count,), value, dtype=kind)}, rows, None)


def probabilities(row: list[float]) -> list[float]:
    peak = max(row)
    weights = [math.exp(value - peak) for value in row]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def kept_top_k(row: list[float], k: int) -> set[int]:
    threshold = sorted(row, reverse=True)[min(k, len(row)) - 1]
    return {i for i, value in enumerate(row) if value >= threshold and value > -INF}


def kept_top_p(row: list[float], p: float) -> set[int]:
    p_of = probabilities(row)
    order = sorted(range(len(row)), key=lambda i: -row[i])
    mass, last = 0.0, order[0]
    for i in order:
        if row[i] == -INF:
            break
        mass, last = mass + p_of[i], i
        if mass >= p:
            break
    return {i for i, value in enumerate(row) if value >= row[last] and value > -INF}


def kept_min_p(row: list[float], m: float) -> set[int]:
    p_of = probabilities(row)
    return {i for i, value in enumerate(row) if value > -INF and p_of[i] >= m * max(p_of) * (1 - 1e-5)}


REFERENCES: dict[str, Callable[[list[float], float], set[int]]] = {
    "top_k": lambda row, value: kept_top_k(row, int(value)),
    "top_p": kept_top_p,
    "min_p": kept_min_p,
}


def support(row: torch.Tensor) -> set[int]:
    return set(torch.nonzero(row > -INF).flatten().tolist())


@settings(max_examples=300, deadline=None)
@given(any_row, st.integers(1, 70))
def test_top_k_by_its_formula(row: list[float], k: int) -> None:
    assert support(shape("top_k", torch.tensor([row]), k)[0]) == kept_top_k(row, k)


@settings(max_examples=300, deadline=None)
@given(any_row, st.floats(0.01, 0.999))
def test_top_p_by_its_formula(row: list[float], p: float) -> None:
    single = torch.tensor([row])
    near = np.cumsum(sorted(probabilities(single[0].tolist()), reverse=True))
    if np.abs(near - np.float32(p)).min() > 1e-5:  # on a boundary either side is right
        assert support(shape("top_p", single, p)[0]) == kept_top_p(single[0].tolist(), p)


@settings(max_examples=300, deadline=None)
@given(any_row, st.floats(0.01, 0.99))
def test_min_p_by_its_formula(row: list[float], m: float) -> None:
    ratios = np.array(probabilities(row)) / max(probabilities(row))
    if np.abs(ratios - m).min() > 1e-5:
        assert support(shape("min_p", torch.tensor([row]), m)[0]) == kept_min_p(row, m)


@pytest.mark.parametrize("name", sorted(TRUNCATIONS))
@settings(max_examples=60, deadline=None)
@given(row=any_row, shift=st.floats(-5, 5), order=st.randoms())
def test_truncations_keep_ratios_masks_and_symmetries(name: str, row: list[float], shift: float, order) -> None:
    value, logits = TRUNCATIONS[name], torch.tensor([row])
    out = shape(name, logits, value)
    kept = support(out[0])
    assert kept and kept <= support(logits[0])
    assert out[0, sorted(kept)].tolist() == logits[0, sorted(kept)].tolist()
    assert int(logits[0].argmax()) in kept
    permutation = list(range(len(row)))
    order.shuffle(permutation)
    assert support(shape(name, logits[:, permutation], value)[0]) == {permutation.index(i) for i in kept}
    longer = torch.cat([logits, torch.full((1, 3), -INF)], 1)
    assert support(shape(name, longer, value)[0]) == kept


@pytest.mark.parametrize(
    ("name", "value", "oracle"),
    [
        ("temperature", 0.7, TemperatureLogitsWarper(0.7)),
        ("top_k", 17, TopKLogitsWarper(17)),
        ("top_p", 0.83, TopPLogitsWarper(0.83)),
        ("min_p", 0.03, MinPLogitsWarper(0.03)),
    ],
)
@pytest.mark.parametrize("vocab", [20, 1000, 200_000])
def test_transformers_warpers_agree(name: str, value: float, oracle: object, vocab: int) -> None:
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    if vocab == 20 and name == "top_k":
        value, oracle = 5, TopKLogitsWarper(5)
    expected = oracle(None, logits.clone())
    given_ = shape(name, logits, value)
    assert torch.equal(given_ > -INF, expected > -INF)
    finite = expected > -INF
    assert torch.allclose(given_[finite], expected[finite])


def test_nesting_of_stronger_truncations() -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(1)) * 2
    for name, weak, strong in (("top_k", 9, 4), ("top_p", 0.9, 0.4), ("min_p", 0.05, 0.4)):
        assert ((shape(name, logits, strong) > -INF) <= (shape(name, logits, weak) > -INF)).all()


def test_repetition_penalty_equals_transformers() -> None:
    from samplers.chain import resolve
    from samplers.stack import SamplerStack

    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(2)) * 3
    prompt, output = [3, 5, 5, 9], [11, 3]
    stack = SamplerStack(2, 40, torch.device("cpu"))
    chain = resolve({"repetition_penalty": 1.7}, 40)
    stack.admit(1, chain, seed=0, choice=0, prompt_ids=prompt)
    for token in output:
        stack.accept(np.array([1]), torch.tensor([token]))
    given_, failures = stack.shape(logits, np.array([1]), np.array([2]))
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + output]), logits.clone())
    assert not failures and torch.allclose(given_, expected)
