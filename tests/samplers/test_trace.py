"""Traces say what happened: every number is computed again from the raw row, and nobody pays who did not ask."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import samplers.stack as stack_module
from samplers.chain import resolve
from samplers.recorder import Recorder
from samplers.rng import Noise, Purpose, Stream
from samplers.stack import Sampled, SamplerStack
from samplers.trace import TokenTrace

VOCABULARY = 40
TOP = 4
CHAINS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 0.6, "min_p": 0.1},
    {"logit_bias": {"3": 4, "7": -100}, "allowed_token_ids": list(range(3, 20)), "top_k": 3},
    {"temperature": 0, "logit_bias": {"5": 50}},
    {"sampler": ["min_p", "top_k", "gumbel"], "sampler_order": "given", "temperature": 1.4},
    {"top_p": 0.7, "temperature": 2.0, "temperature_last": True},
]


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    rows_ = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2
    rows_[:, 11] = -math.inf
    return rows_


def build(traced: list[int], chains: list[dict[str, Any]] = CHAINS) -> SamplerStack:
    stack = SamplerStack(len(chains), VOCABULARY, torch.device("cpu"))
    for slot, fields in enumerate(chains):
        stack.admit(
            slot,
            resolve(fields, VOCABULARY),
            seed=slot,
            choice=0,
            prompt_ids=[1, 2],
            trace=TOP if slot in traced else 0,
        )
    return stack


def sample(stack: SamplerStack, rows: torch.Tensor, position: int = 0) -> Sampled:
    slots = np.arange(len(rows))
    return stack.sample(rows, slots, np.full(len(rows), position))


def shaped(row: np.ndarray, fields: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    """The rows after each stage of `fields`, by the formulas, in the order they were written down for the chain."""
    out, greedy = [], fields.get("temperature") == 0
    names = {
        2: ["temperature", "min_p"],
        3: ["allowed_token_ids", "logit_bias", "top_k"],
        4: ["logit_bias"],
        5: ["temperature", "min_p", "top_k"],
        6: ["top_p", "temperature"],
    }.get(CHAINS.index(fields), [])
    for name in names:
        row, p = row.copy(), softmax(row)
        if name == "temperature" and not greedy:
            row = row / fields["temperature"]
        elif name == "min_p":
            row[p < fields.get("min_p", 0.05) * p.max()] = -np.inf
        elif name == "top_k":
            row[row < np.sort(row)[-min(fields.get("top_k", 40), len(row))]] = -np.inf
        elif name == "allowed_token_ids":
            row[[i for i in range(len(row)) if i not in fields[name]]] = -np.inf
        elif name == "logit_bias":
            for token, bias in fields[name].items():
                row[int(token)] += bias
        elif name == "top_p":
            order = np.argsort(-p)
            row[order[np.searchsorted(p[order].cumsum(), fields["top_p"]) + 1 :]] = -np.inf
        out.append((name, row))
    return out


def softmax(row: np.ndarray) -> np.ndarray:
    mass = np.exp(row - row.max())
    return mass / mass.sum()


def entropy(p: np.ndarray) -> float:
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def check(trace: TokenTrace, row: np.ndarray, fields: dict[str, Any]) -> None:
    """Every number of a trace against the formulas."""
    close = lambda value: pytest.approx(value, rel=1e-4, abs=1e-6)  # noqa: E731
    before, p = row, softmax(row)
    assert (trace.probability, trace.entropy) == (close(p[trace.token]), close(entropy(p)))
    assert trace.possible == int((row > -np.inf).sum()) == VOCABULARY - 1
    assert [chance for _, chance in trace.candidates] == [close(p[token]) for token, _ in trace.candidates]
    assert TOP <= len(trace.candidates) <= 2 * TOP
    steps = shaped(row, fields)
    assert [stage.name for stage in trace.stages] == [name for name, _ in steps]
    for stage, (_, after) in zip(trace.stages, steps, strict=True):
        q = softmax(after)
        assert stage.possible == (int((before > -np.inf).sum()), int((after > -np.inf).sum()))
        assert stage.removed_mass == close(p[(after == -np.inf) & (before > -np.inf)].sum())
        assert stage.entropy == (close(entropy(p)), close(entropy(q)))
        assert stage.drawn == (close(p[trace.token]), close(q[trace.token]))
        for one in stage.candidates:
            assert (one.before, one.after) == (close(p[one.token]), close(q[one.token]))
        before, p = after, q
    shown = {token for token, _ in trace.candidates}
    assert {int(i) for i in np.argsort(-softmax(row))[:TOP]} <= shown  # the model's best
    assert {int(i) for i in np.argsort(-p)[:TOP] if p[i] > 0} <= shown  # and the last stage's
    if trace.draw.interval is not None:
        low, high = trace.draw.interval
        assert (low, high) == (close(p[: trace.token].sum()), close(p[: trace.token + 1].sum()))


@pytest.mark.parametrize("seed", range(4))
def test_every_number_is_what_the_formulas_give(seed: int) -> None:
    rows = logits(len(CHAINS), seed)
    result = sample(build(list(range(len(CHAINS)))), rows, seed)
    assert not result.failures and sorted(result.traces) == list(range(len(CHAINS)))
    for slot, fields in enumerate(CHAINS):
        trace = result.traces[slot]
        assert trace.token == result.tokens[slot]
        check(trace, rows[slot].double().numpy(), fields)


def test_the_draw_says_which_number_decided() -> None:
    position = 3
    result = sample(build(list(range(len(CHAINS)))), logits(len(CHAINS)), position)
    for slot, fields in enumerate(CHAINS):
        draw = result.traces[slot].draw
        stream = Stream(slot, 0)
        noise = Noise(np.array([stream.key]), np.array([stream.choice]), np.array([position]))
        if fields.get("temperature") == 0:
            assert (draw.name, draw.random, draw.interval) == ("greedy", (), None)
        elif "sampler" in fields:
            own = noise.per_token(Purpose.NOISE, VOCABULARY)[0, result.traces[slot].token]
            assert (draw.name, draw.random, draw.interval) == ("gumbel", (own,), None)
        else:
            assert (draw.name, draw.random) == ("iid", (noise.uniform(Purpose.DRAW)[0],))
            assert draw.interval is not None and draw.interval[0] <= draw.random[0] < draw.interval[1]


def test_a_stage_that_throws_a_coin_shows_it() -> None:
    fields = {"xtc_probability": 0.5, "xtc_threshold": 0.05}
    result = sample(build([0], [fields]), logits(1))
    (stage,) = result.traces[0].stages
    noise = Noise(np.array([0]), np.array([0]), np.array([0]))
    assert stage.random == (noise.uniform(Purpose.XTC)[0],)


@pytest.mark.parametrize("traced", [[], [0], [2, 5], list(range(len(CHAINS)))])
def test_tokens_and_rows_are_those_of_an_untraced_batch(traced: list[int]) -> None:
    watched, plain = build(traced), build([])
    for position in range(5):
        rows = logits(len(CHAINS), position)
        one, other = sample(watched, rows, position), sample(plain, rows, position)
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.processed, other.processed)
        assert sorted(one.traces) == traced and not other.traces
        slots = np.arange(len(CHAINS))
        watched.accept(slots, one.tokens)
        plain.accept(slots, other.tokens)


def test_nobody_asks_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Counted(Recorder):
        def __init__(self, *arguments: Any) -> None:
            made.append(1)
            super().__init__(*arguments)

    monkeypatch.setattr(stack_module, "Recorder", Counted)
    stack = build([2])
    rows = logits(len(CHAINS))
    sample(stack, rows)
    assert len(made) == 1
    others = np.array([0, 1, 3])
    stack.sample(rows[:3], others, np.zeros(3, np.int64))  # its slot is not in this step
    assert len(made) == 1
    stack.free(2)
    stack.free(2)
    stack.admit(2, resolve({}, VOCABULARY), seed=1, choice=0, prompt_ids=[1])
    assert not sample(stack, rows).traces
    assert len(made) == 1


def test_a_fork_is_traced_like_its_parent() -> None:
    stack = build([0], CHAINS[:3])
    stack.fork(0, 1)
    assert sorted(sample(stack, logits(3)).traces) == [0, 1]
    stack.free(0)
    assert sorted(sample(stack, logits(3)).traces) == [1]


def test_rows_that_fail_have_no_trace_and_harm_nobody() -> None:
    chains: list[dict[str, Any]] = [{"allowed_token_ids": [11]}, {"top_k": 2}]  # 11 is impossible already
    result = sample(build([0, 1], chains), logits(2))
    assert list(result.failures) == [0] and list(result.traces) == [1]
    nan = logits(2)
    nan[1, 3] = math.nan
    result = sample(build([0, 1], [{}, {}]), nan)
    assert list(result.failures) == [1] and list(result.traces) == [0]


def test_candidates_are_ordered_and_ties_go_to_the_lower_id() -> None:
    rows = torch.zeros(1, VOCABULARY)
    rows[0, 30] = 1.0
    trace = sample(build([0], [{}]), rows).traces[0]
    assert [token for token, _ in trace.candidates] == [30, 0, 1, 2]
