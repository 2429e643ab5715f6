"""Decode steps over static buffers give the eager logits and write nobody else's keys; a replayed function stands in
for the captured graph."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.runners.torch.cuda_graphs import DecodeGraphs, Recording
from engine.runners.torch.decode_buffers import DecodeBuffers, size_for, sizes_up_to
from engine.runners.torch.packing import Chunk, pack
from engine.runners.torch.step import Span, Step
from tests.engine.driver import PAGE, Driver, Line
from tests.engine.paged_kernel import PagedDriver, Rerun
from tests.engine.tiny_models import tiny_model

CPU = torch.device("cpu")


@given(st.integers(1, 600))
def test_sizes_grow_by_less_than_two_and_end_at_the_most(most: int) -> None:
    sizes = sizes_up_to(most)
    assert sizes == sorted(set(sizes)) and sizes[0] == 1 and sizes[-1] == most
    assert all(b <= 2 * a for a, b in itertools.pairwise(sizes))
    for rows in range(1, most + 1):
        size = size_for(rows, sizes)
        assert size is not None and rows <= size <= max(8, 2 * rows)
    assert size_for(most + 1, sizes) is None


def test_a_size_far_too_large_is_not_used() -> None:
    assert size_for(3, [64, 32]) is None and size_for(20, [64, 32]) == 32 and size_for(2, [8]) == 8


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 24), min_size=1, max_size=9), min_size=1, max_size=4), st.randoms())
def test_layout_of_rows_and_padding(batches: list[list[int]], rng: random.Random) -> None:
    """Whatever the buffers held before, rows come first in order, and padding touches nothing but slot 0."""
    buffers = DecodeBuffers(9, 24, PAGE, CPU)
    for lengths in batches:
        pages = [rng.sample(range(1, 60), -(-n // PAGE)) for n in lengths]
        runs = [[(p * PAGE, p * PAGE + min(PAGE, n - i * PAGE)) for i, p in enumerate(own)] for own, n in zip(pages, lengths, strict=True)]  # fmt: skip # noqa: E501
        spans = [Span(i, 1, n - 1, tuple(run)) for i, (n, run) in enumerate(zip(lengths, runs, strict=True))]
        count, slots = len(spans), torch.tensor([run[-1][1] - 1 for run in runs])
        ids, positions = torch.randint(1, 64, (count,)), torch.tensor(lengths) - 1
        step = Step(ids, positions, slots, torch.arange(count), spans)
        assert buffers.take(step)
        size = rng.randint(count, 9)
        buffers.fill(step, size)
        plan, (held_ids, held_positions, rows) = buffers.plan(size), buffers.inputs(size)
        padding = [0] * (size - count)
        assert held_ids.tolist() == ids.tolist() + padding and rows.tolist() == list(range(size))
        assert (
            held_positions.tolist() == positions.tolist() + padding and plan.slots.tolist() == slots.tolist() + padding
        )
        assert plan.used.tolist() == lengths + [1] * (size - count)
        assert plan.ends.tolist() == [0, *np.cumsum(plan.used.numpy()).tolist()]
        assert plan.starts.tolist() == list(range(size + 1)) and plan.most_rows == 1
        for row, own in zip(plan.pages.tolist(), [*pages, *[[0]] * (size - count)], strict=True):
            assert row[: len(own)] == own


def test_which_steps_the_buffers_take() -> None:
    buffers = DecodeBuffers(2, 8, PAGE, CPU)

    def step(*spans: Span) -> Step:
        rows = torch.arange(spans[-1].stop)
        return Step(rows, rows, rows, rows, list(spans))

    single = Span(0, 1, 3, ((4, 8),))
    assert buffers.take(step(single)) and buffers.take(step(single, Span(1, 1, 7, ((8, 16),))))
    assert not buffers.take(step(Span(0, 2, 3, ((4, 9),))))
    assert not buffers.take(step(Span(0, 1, 8, ((4, 13),))))
    assert not buffers.take(step(Span(0, 1, 3, ((4, 8),), np.ones((1, 1), bool), np.zeros(1, np.int64))))
    assert not buffers.take(step(single, Span(1, 1, 0, ((8, 9),)), Span(2, 1, 0, ((12, 13),))))


def graphed(kind: str, rows: int = 9, recorder: object = None, tokens: int = 64) -> tuple[PagedDriver, Rerun]:
    driver, rerun = PagedDriver(tiny_model(kind)), recorder or Rerun()
    assert driver.forward.use_graphs(rows, tokens, rerun)
    return driver, rerun


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma3_text", "gpt_oss", "deepseek_v3"])
def test_random_batches_equal_the_models_own_attention(kind: str) -> None:
    driver, rerun = graphed(kind)
    rng, replays = random.Random(kind), rerun.replays
    lines: list[Line] = []
    steps = 0
    for _ in range(40):
        if len(lines) < 9 and rng.random() < 0.4:
            line = driver.line([rng.randint(3, 63) for _ in range(rng.randint(1, 20))])
            driver.step((line, len(line.tokens)))
            lines.append(line)
        if len(lines) > 1 and rng.random() < 0.2:
            lines.append(driver.fork(rng.choice(lines)))
        if len(lines) > 3 and rng.random() < 0.2:
            gone = lines.pop(rng.randrange(len(lines)))
            driver.pages.release(gone.branch)
            driver.lines.remove(gone)
        chosen = [line for line in lines if len(line.tokens) < 40 and rng.random() < 0.8][:9]
        for line in chosen:
            line.tokens.append(rng.randint(3, 63))
        if chosen:
            out = driver.step(*[(line, 1) for line in chosen])
            steps += 1
            for line in chosen:
                expected = driver.eager(line.tokens)[-1]
                assert (out[line][0] - expected).abs().max() <= 1e-4
    assert rerun.replays - replays >= steps > 20  # one-token prompts are decode steps too


def test_padding_writes_nobodys_keys() -> None:
    driver, _ = graphed("gpt_oss")
    lines = [driver.line([5 + i] * n) for i, n in enumerate((6, 9, 3))]
    driver.step(*[(line, len(line.tokens)) for line in lines])
    before = [store.clone() for store in (*driver.pool.keys, *driver.pool.values)]
    for line in lines:
        line.tokens.append(7)
    driver.step(*[(line, 1) for line in lines])  # three rows in a graph of four
    written = {driver.pages.slot(line.branch, line.computed - 1) for line in lines}
    for old, new in zip(before, (*driver.pool.keys, *driver.pool.values), strict=True):
        changed = set((old != new).flatten(1).any(1).nonzero()[:, 0].tolist())
        assert written <= changed <= written | {0}


@torch.inference_mode()
def test_logit_rows_may_repeat_be_few_or_none() -> None:
    driver, _ = graphed("llama")
    lines = [driver.line([3, 4, 5]), driver.line([6, 7, 8, 9])]
    driver.step(*[(line, len(line.tokens)) for line in lines])
    for line in lines:
        line.tokens.append(11)
        driver.pages.append(line.branch, 1)
    chunks = [Chunk(line.branch, line.computed, line.tokens[-1:]) for line in lines]
    expected = [driver.eager(line.tokens)[-1] for line in lines]
    for rows in ([1, 1, 0], [1], []):
        logits = driver.forward(pack(driver.pages, chunks, rows, CPU))
        assert logits.shape == (len(rows), 64)
        for row, found in zip(rows, logits, strict=True):
            assert (found - expected[row]).abs().max() <= 1e-4


def test_outputs_outlive_the_next_replay() -> None:
    driver, _ = graphed("llama")
    line = driver.line([3, 4, 5])
    driver.step((line, 3))
    line.tokens += [6, 7]
    first = driver.step((line, 1))[line]
    kept = first.clone()
    driver.step((line, 1))
    assert torch.equal(first, kept)


class Broken:
    """A recorder whose recordings are wrong in one way."""

    def __init__(self, wrong: Callable[[Callable[[], Tensor]], Recording]) -> None:
        self.wrong = wrong
        self.calls = 0

    def __call__(self, call: Callable[[], Tensor]) -> Recording:
        self.calls += 1
        return self.wrong(call)


def stale(call: Callable[[], Tensor]) -> Recording:
    return Recording(lambda: None, call().clone())


def raising(call: Callable[[], Tensor]) -> Recording:
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")


def upstream(call: Callable[[], Tensor]) -> Recording:
    raise AttributeError("something in a model")


@pytest.mark.parametrize(
    ("wrong", "why"), [(stale, "logits differ"), (raising, "stream is capturing"), (upstream, "something in a model")]
)
def test_recordings_that_fail_are_given_up_once_and_for_all(
    caplog: pytest.LogCaptureFixture, wrong: Callable[..., Recording], why: str
) -> None:
    driver, recorder = PagedDriver(tiny_model("llama")), Broken(wrong)
    with caplog.at_level(logging.WARNING):
        assert not driver.forward.use_graphs(9, 64, recorder)
    assert recorder.calls == 1 and driver.forward.graphs is None
    assert [why in record.message for record in caplog.records] == [True]
    line = driver.line([3, 4, 5, 6])
    driver.step((line, 3))
    assert (driver.step((line, 1))[line] - driver.eager(line.tokens)[-1]).abs().max() <= 1e-4


def test_a_replay_that_fails_switches_graphs_off_and_the_step_is_computed(caplog: pytest.LogCaptureFixture) -> None:
    driver, _ = graphed("llama")
    line = driver.line([3, 4, 5, 6, 7])
    driver.step((line, 3))

    def lost(step: Step) -> Tensor:
        raise RuntimeError("CUDA error: unspecified launch failure")

    driver.forward.graphs = lost
    for _ in range(2):
        with caplog.at_level(logging.ERROR):
            logits = driver.step((line, 1))[line]
        assert (logits - driver.eager(line.tokens[: line.computed])[-1]).abs().max() <= 1e-4
    assert len(caplog.records) == 1 and driver.forward.graphs is None


def test_a_model_of_which_some_layers_gather_gets_no_graphs() -> None:
    assert not PagedDriver(tiny_model("llama4_text")).forward.use_graphs(4, 64, Rerun())
    assert not Driver(tiny_model("llama"), "gather").forward.use_graphs(4, 64, Rerun())


def test_small_steps_run_eagerly_when_the_time_is_over(caplog: pytest.LogCaptureFixture) -> None:
    driver = PagedDriver(tiny_model("llama"))
    buffers = DecodeBuffers(32, 64, PAGE, CPU)
    graphs = DecodeGraphs(driver.forward._logits, driver.backend, buffers, Rerun())
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        assert graphs.record(64, 64, budget_s=0)
    assert graphs.sizes == [32] and "steps below 32 rows have none" in caplog.text


@pytest.mark.parametrize(("rows", "tokens"), [(1, 4), (2, 200), (64, 8), (127, 3), (500, 256)])
def test_recording_works_for_any_shape_of_engine(rows: int, tokens: int) -> None:
    driver, _ = graphed("llama", rows, tokens=tokens)
    assert driver.forward.graphs.sizes[-1] == min(rows, 127)
