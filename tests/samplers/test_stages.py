"""Every stateless stage against its formula, written out slowly, and the properties all of them share."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from samplers.chain import resolve
from samplers.contract import Admission, Rows, SamplerError, Shape
from samplers.registry import STAGES
from samplers.rng import Noise, Purpose
from samplers.stack import SamplerStack

INF = math.inf
Row = list[float]
grid = st.integers(-20 * 2**12, 20 * 2**12).map(lambda i: i / 2**12)  # values are equal or well apart
values = st.one_of(grid, st.sampled_from([0.0, 1.0, 2.0]), st.just(-INF))
any_row = st.lists(values, min_size=2, max_size=60).filter(lambda row: max(row) > -INF)


def shape(name: str, row: torch.Tensor, ending: frozenset[int] = frozenset(), seed: int = 0, **given_: Any) -> Any:
    """The stage alone on rows [R, V]; parameters that are not given have the value they have when it is named."""
    stage, count = STAGES.get(name), len(row)
    zeros = np.zeros(count, np.int64)
    params = {}
    for param in stage.params:
        kind = {int: torch.int64, bool: torch.bool, float: torch.float32}[param.kind]
        params[param.name] = torch.full((count,), given_.get(param.name, param.when_named), dtype=kind)
    state = stage.new_state(Shape(count, row.shape[1], row.device))
    if state is not None:
        for slot in range(count):
            state.admit(slot, Admission({}, [0], [], ending))
    rows = Rows(torch.arange(count), torch.from_numpy(zeros), Noise(zeros + seed, zeros, zeros))
    before = row.clone()
    result = stage.shape(row, params, rows, state)
    assert torch.equal(row, before)
    return result


def probabilities(row: Row) -> Row:
    peak = max(row)
    weights = [math.exp(value - peak) for value in row]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def entropy(p_of: Row) -> float:
    return -math.fsum(p * math.log(p) for p in p_of if p > 0)


def falling(row: Row) -> list[int]:
    """Ids that are not masked, most probable first."""
    return sorted((i for i, value in enumerate(row) if value > -INF), key=lambda i: -row[i])


def with_ties(row: Row, kept: list[int]) -> set[int]:
    return {i for i in falling(row) if row[i] >= min(row[j] for j in kept)}


def kept_top_k(row: Row, k: float) -> set[int]:
    return with_ties(row, falling(row)[: int(k)])


def prefix(row: Row, terms: Row, bound: float) -> int:
    """How many of the terms, in falling order of the row, reach the bound; all if none do."""
    total = 0.0
    for count, term in enumerate(terms, 1):
        total += term
        if total >= bound:
            return count
    return len(terms)


def kept_top_p(row: Row, p: float) -> set[int]:
    order, p_of = falling(row), probabilities(row)
    return with_ties(row, order[: prefix(row, [p_of[i] for i in order], p)])


def kept_min_p(row: Row, m: float) -> set[int]:
    p_of = probabilities(row)
    return {i for i in falling(row) if p_of[i] >= m * max(p_of) * (1 - 1e-5)}


def kept_top_n_sigma(row: Row, n: float) -> set[int]:
    finite = [row[i] for i in falling(row)]
    mean = math.fsum(finite) / len(finite)
    sigma = math.sqrt(math.fsum((x - mean) ** 2 for x in finite) / len(finite))
    return {i for i in falling(row) if row[i] >= max(finite) - n * sigma * (1 + 1e-6)}


def kept_top_a(row: Row, a: float) -> set[int]:
    p_of = probabilities(row)
    return {i for i in falling(row) if p_of[i] >= a * max(p_of) ** 2 * (1 - 1e-5)}


def kept_tail_free(row: Row, z: float) -> set[int]:
    order, p_of = falling(row), probabilities(row)
    p = [p_of[i] for i in order]
    bends = [abs(p[i] - 2 * p[i + 1] + p[i + 2]) for i in range(len(p) - 2)]
    if not bends or math.fsum(bends) == 0:
        return set(order)
    return with_ties(row, order[: prefix(row, bends, z * math.fsum(bends)) + 1])


def kept_top_h(row: Row, h: float) -> set[int]:
    order = falling(row)[:100]
    p = probabilities([row[i] for i in order])
    kept, total = 0, 0.0
    for value in p:
        total -= value * math.log(value) if value > 0 else 0.0
        if total > h * entropy(p) * (1 + 1e-12):
            break
        kept += 1
    return with_ties(row, order[: max(kept, 1)])


def kept_typical(row: Row, tau: float) -> set[int]:
    p_of = probabilities(row)
    expected = entropy(p_of)
    distance = {i: abs(-math.log(p_of[i]) - expected) if p_of[i] > 0 else INF for i in falling(row)}
    order = sorted(distance, key=distance.__getitem__)
    last = order[prefix(row, [p_of[i] for i in order], tau) - 1]
    return {i for i in order if distance[i] <= distance[last] + 1e-9}


def kept_epsilon(row: Row, epsilon: float) -> set[int]:
    p_of = probabilities(row)
    return {i for i in falling(row) if p_of[i] >= epsilon * (1 - 1e-5) or row[i] == max(row)}


def kept_eta(row: Row, epsilon: float) -> set[int]:
    p_of = probabilities(row)
    return kept_epsilon(row, min(epsilon, math.sqrt(epsilon) * math.exp(-entropy(p_of))))


# stage -> its parameter, values from the weakest to the strongest truncation, formula, and what decides about a token:
# rows where that is nearer to the bound than rounding are left out
Truncation = tuple[str, tuple[float, ...], Callable[[Row, float], set[int]]]
TRUNCATIONS: dict[str, Truncation] = {
    "top_k": ("top_k", (30, 7, 3, 1), kept_top_k),
    "top_p": ("top_p", (0.95, 0.7, 0.4, 0.05), kept_top_p),
    "min_p": ("min_p", (0.01, 0.2, 0.5, 1.0), kept_min_p),
    "top_n_sigma": ("top_n_sigma", (3.0, 1.0, 0.5, 0.1), kept_top_n_sigma),
    "top_a": ("top_a", (0.01, 0.2, 0.6, 1.0), kept_top_a),
    "tail_free": ("tfs", (0.99, 0.9, 0.6, 0.2), kept_tail_free),
    "top_h": ("top_h", (0.95, 0.6, 0.4, 0.1), kept_top_h),
    "typical": ("typical_p", (0.95, 0.7, 0.4, 0.05), kept_typical),
    "epsilon": ("epsilon_cutoff", (1e-4, 0.01, 0.1, 0.6), kept_epsilon),
    "eta": ("eta_cutoff", (1e-4, 0.01, 0.1, 0.6), kept_eta),
}
NEAR = 1e-4  # relative, of a parameter: rows whose kept set changes within this are on a boundary


def support(row: torch.Tensor) -> set[int]:
    return set(torch.nonzero(row > -INF).flatten().tolist())


def truncate(name: str, rows: torch.Tensor, value: float) -> torch.Tensor:
    result: torch.Tensor = shape(name, rows, **{TRUNCATIONS[name][0]: value})
    return result


def on_boundary(name: str, row: Row, value: float) -> bool:
    reference = TRUNCATIONS[name][2]
    if name == "top_k":
        return False
    around = [reference(row, value * (1 + NEAR)), reference(row, value), reference(row, value * (1 - NEAR))]
    return not around[0] == around[1] == around[2]


@pytest.mark.parametrize("name", sorted(TRUNCATIONS))
@settings(max_examples=300, deadline=None)
@given(row=any_row, level=st.integers(0, 3), nudge=st.floats(0.7, 1.0))
def test_truncations_by_their_formulas(name: str, row: Row, level: int, nudge: float) -> None:
    _, levels, reference = TRUNCATIONS[name]
    value = max(1, round(levels[level] * nudge)) if name == "top_k" else float(np.float32(levels[level] * nudge))
    assume(not on_boundary(name, row, value))
    assert support(truncate(name, torch.tensor([row]), value)[0]) == reference(row, value)


@pytest.mark.parametrize("name", sorted(TRUNCATIONS))
@settings(max_examples=60, deadline=None)
@given(row=any_row, level=st.integers(0, 3), shift=st.sampled_from([-8.0, 0.5, 4.0]), order=st.randoms())
def test_truncations_keep_ratios_masks_and_symmetries(
    name: str, row: Row, level: int, shift: float, order: Any
) -> None:
    value, logits = TRUNCATIONS[name][1][level], torch.tensor([row])
    assume(not on_boundary(name, row, value))
    out = truncate(name, logits, value)
    kept = support(out[0])
    assert kept and kept <= support(logits[0])
    assert out[0, sorted(kept)].tolist() == logits[0, sorted(kept)].tolist()
    assert name == "typical" or int(logits[0].argmax()) in kept
    permutation = list(range(len(row)))
    order.shuffle(permutation)
    assert support(truncate(name, logits[:, permutation], value)[0]) == {permutation.index(i) for i in kept}
    longer = torch.cat([logits, torch.full((1, 3), -INF)], 1)
    assert support(truncate(name, longer, value)[0]) == kept
    moved = (logits + shift).tolist()[0]
    if len(set(moved)) == len(set(row)) and not on_boundary(name, moved, value):  # rounding can join two values
        assert support(truncate(name, logits + shift, value)[0]) == kept


@pytest.mark.parametrize("name", sorted(TRUNCATIONS))
@pytest.mark.parametrize("row", ["uniform", "one_hot", "two"])
def test_truncations_of_special_rows(name: str, row: str) -> None:
    logits = torch.zeros(1, 9) if row == "uniform" else torch.full((1, 9), -INF)
    if row != "uniform":
        logits[0, 4] = 1.5
    if row == "two":
        logits[0, 7] = 1.5
    for value in TRUNCATIONS[name][1]:
        kept = support(truncate(name, logits, value)[0])
        if name == "epsilon" and row == "uniform" and value > 1 / 9:
            continue  # nothing is probable enough; the tied most probable ones stay, which is everything as well
        assert kept == support(logits[0]), value


@pytest.mark.parametrize("name", sorted(TRUNCATIONS))
def test_nesting_of_stronger_truncations(name: str) -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(1)) * 2
    masks = [truncate(name, logits, value) > -INF for value in TRUNCATIONS[name][1]]
    for weak, strong in pairwise(masks):
        assert (strong <= weak).all()


@pytest.mark.parametrize(
    ("name", "given_", "oracle"),
    [
        ("temperature", {"temperature": 0.7}, TemperatureLogitsWarper(0.7)),
        ("top_k", {"top_k": 17}, TopKLogitsWarper(17)),
        ("top_p", {"top_p": 0.83}, TopPLogitsWarper(0.83)),
        ("min_p", {"min_p": 0.03}, MinPLogitsWarper(0.03)),
        ("typical", {"typical_p": 0.9}, TypicalLogitsWarper(0.9)),
        ("typical", {"typical_p": 0.2}, TypicalLogitsWarper(0.2)),
        ("epsilon", {"epsilon_cutoff": 3e-4}, EpsilonLogitsWarper(3e-4)),
        ("eta", {"eta_cutoff": 1e-3}, EtaLogitsWarper(1e-3)),
        ("top_h", {"top_h": 0.4}, TopHLogitsWarper(0.4)),
        ("top_h", {"top_h": 0.9}, TopHLogitsWarper(0.9)),
    ],
)
@pytest.mark.parametrize("vocab", [20, 1000, 200_000])
def test_transformers_warpers_agree(name: str, given_: dict[str, Any], oracle: Any, vocab: int) -> None:
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    # in double precision: with so many tokens sums in fp32 cross the bound a few tokens earlier or later
    expected = oracle(None, logits.double() if name == "typical" else logits.clone()).float()
    ours = shape(name, logits, **given_)
    assert torch.equal(ours > -INF, expected > -INF)
    finite = expected > -INF
    assert torch.allclose(ours[finite], expected[finite])


@settings(max_examples=200, deadline=None)
@given(any_row, st.floats(0.3, 3), st.floats(0.01, 1), st.floats(0.2, 5))
def test_dynamic_temperature_by_its_formula(row: Row, middle: float, share: float, exponent: float) -> None:
    reach = middle * share
    count, p_of = len(falling(row)), probabilities(row)
    result = shape(
        "temperature", torch.tensor([row]), temperature=middle, dynatemp_range=reach, dynatemp_exponent=exponent
    )
    if count == 1:
        assert result.tolist()[0] == row
        return
    ratio = entropy(p_of) / math.log(count)
    expected = max(middle - reach + 2 * reach * ratio**exponent, 1e-5)
    for ours, value in zip(result.tolist()[0], row, strict=True):
        if value > -INF and expected > 1e-2:
            assert ours == pytest.approx(value / expected, rel=1e-3, abs=1e-3)
        elif value == -INF:
            assert ours == -INF


def test_dynamic_temperature_at_its_ends() -> None:
    sure = torch.tensor([[30.0, 0.0, -5.0]])
    unsure = torch.zeros(1, 5) + 2.0
    wide = {"temperature": 1.0, "dynatemp_range": 0.5}
    assert torch.allclose(shape("temperature", sure, **wide), sure / 0.5, rtol=1e-4)
    assert torch.allclose(shape("temperature", unsure, **wide), unsure / 1.5)
    still = {"temperature": 0.8, "dynatemp_range": 0.0}
    assert torch.equal(shape("temperature", sure, **still), sure / 0.8)


@pytest.mark.parametrize(
    "fields", [{"temperature": 0.5, "dynatemp_range": 0.6}, {"temperature": 0, "dynatemp_range": 0.1}]
)
def test_dynamic_temperature_needs_room(fields: dict[str, float]) -> None:
    with pytest.raises(SamplerError) as error:
        resolve(fields, 10)
    assert error.value.param == "dynatemp_range"
    assert not resolve({"temperature": 0}, 10).stages
    assert resolve({"temperature": 1, "dynatemp_range": 0.5}, 10).stages


def test_top_n_sigma_does_not_depend_on_temperature() -> None:
    logits = torch.randn(8, 400, generator=torch.Generator().manual_seed(5)) * 3
    kept = truncate("top_n_sigma", logits, 1.0) > -INF
    for temperature in (0.25, 0.5, 2.0, 4.0):
        assert torch.equal(truncate("top_n_sigma", logits / temperature, 1.0) > -INF, kept)


def test_eta_keeps_what_epsilon_keeps() -> None:
    logits = torch.randn(30, 300, generator=torch.Generator().manual_seed(6)) * 2
    for value in (1e-4, 1e-3, 1e-2, 0.1):
        assert ((truncate("epsilon", logits, value) > -INF) <= (truncate("eta", logits, value) > -INF)).all()


@settings(max_examples=200, deadline=None)
@given(any_row, st.floats(0.05, 3), st.floats(1, 5))
def test_smoothing_by_its_formula(row: Row, factor: float, curve: float) -> None:
    factor, curve = float(np.float32(factor)), float(np.float32(curve))
    result = shape("smoothing", torch.tensor([row]), smoothing_factor=factor, smoothing_curve=curve).tolist()[0]
    for ours, value in zip(result, row, strict=True):
        if value == -INF:
            assert ours == -INF
            continue
        x = value - max(row)
        expected = max(row) - (3 - curve) / 2 * factor * x**2 + (curve - 1) / 2 * factor * x**3
        assert ours == pytest.approx(expected, rel=1e-4, abs=1e-3)


far = st.floats(0, 127).map(lambda i: -(2.0**i)) | st.sampled_from([float(torch.finfo(torch.float32).min), -1e20])


@settings(max_examples=300, deadline=None)
@given(any_row, st.lists(far, min_size=1, max_size=3), st.sampled_from([0.05, 0.4, 0.7, 0.95]))
def test_typical_keeps_its_resolution_beside_tokens_far_below(row: Row, deep: Row, tau: float) -> None:
    row = np.float32([*row, *deep]).tolist()
    tau = float(np.float32(tau))
    assume(not on_boundary("typical", row, tau))
    assert support(truncate("typical", torch.tensor([row]), tau)[0]) == kept_typical(row, tau)


@settings(max_examples=300, deadline=None)
@given(any_row, st.lists(far, min_size=1, max_size=3), st.sampled_from([1e-20, 0.3, 1e6]), st.sampled_from([1, 4, 1e6]))
def test_smoothing_keeps_the_order_far_below_the_peak(row: Row, deep: Row, factor: float, curve: float) -> None:
    logits = torch.tensor([[*row, *deep]])
    result = shape("smoothing", logits, smoothing_factor=factor, smoothing_curve=curve)
    assert torch.equal(result.isfinite(), logits > -INF)
    # the cubic of a curve above 3 rises before it falls
    falls = logits.amax() - logits >= (2 * (curve - 3) / (3 * (curve - 1)) if curve > 3 else 0)
    ordered = result[falls][logits[falls].argsort()]
    assert (ordered[1:] >= ordered[:-1]).all()


def test_smoothing_stays_below_a_peak_that_is_far_out_itself() -> None:
    for peak in (1e38, -1e37, -1e31, 0.0):
        logits = torch.tensor([[peak, -3e38]])
        for factor in (1e-9, 0.3):
            result = shape("smoothing", logits, smoothing_factor=factor)[0]
            assert result[0] == peak and -INF < result[1] < peak


def coins(seed: int) -> float:
    zeros = np.zeros(1, np.int64)
    return float(Noise(zeros + seed, zeros, zeros).uniform(Purpose.XTC)[0])


@settings(max_examples=300, deadline=None)
@given(any_row, st.floats(0.01, 0.5), st.integers(0, 50))
def test_xtc_by_its_rule(row: Row, threshold: float, seed: int) -> None:
    p_of = probabilities(row)
    assume(min(abs(p - threshold) for p in p_of) > 1e-6)
    probable = [i for i in falling(row) if p_of[i] >= threshold]
    kept = set(falling(row))
    if coins(seed) < 0.5 and len(probable) >= 2:
        kept -= {i for i in probable if row[i] > min(row[j] for j in probable)}
    logits = torch.tensor([row])
    assert support(shape("xtc", logits, seed=seed, xtc_threshold=threshold)[0]) == kept
    assert torch.equal(shape("xtc", logits, seed=seed, xtc_threshold=threshold, xtc_probability=0.0), logits)


def test_xtc_keeps_the_end_of_the_text() -> None:
    logits = torch.tensor([[3.0, 2.9, 2.8, 0.0]])
    always = {"xtc_probability": 1.0, "xtc_threshold": 0.1}
    assert support(shape("xtc", logits, **always)[0]) == {2, 3}
    assert support(shape("xtc", logits, frozenset({1}), **always)[0]) == {0, 1, 2, 3}
    assert support(shape("xtc", logits, frozenset({2, 3}), **always)[0]) == {2, 3}  # would not have gone anyway
    assert support(shape("xtc", logits, frozenset({1}), xtc_protect=False, **always)[0]) == {2, 3}


def test_xtc_is_a_mixture_over_its_coin() -> None:
    flipped = sum(coins(seed) < 0.3 for seed in range(20_000))
    assert abs(flipped - 6000) < 5 * math.sqrt(20_000 * 0.3 * 0.7)


def test_neutral_values_are_not_scheduled() -> None:
    neutral = {
        "top_n_sigma": 0, "top_a": 0, "tfs": 1, "top_h": 1, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0,
        "smoothing_factor": 0, "smoothing_curve": 3, "xtc_probability": 0, "xtc_threshold": 0.2, "temperature": 1,
    }  # fmt: skip
    assert resolve(neutral, 10).stages == ()
    assert resolve({"xtc_probability": 0.5, "xtc_threshold": 0.6}, 10).stages == ()


def test_repetition_penalty_equals_transformers() -> None:
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
