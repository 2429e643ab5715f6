"""The CUDA backend over an emulation of its kernel: every family, every kind of step, and what the kernel is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.runners.torch.attention_cuda import CudaAttention, KernelError, Plan, refusal
from engine.runners.torch.attention_gather import GatherAttention
from engine.runners.torch.block_table import block_table
from engine.runners.torch.forward import Forward
from engine.runners.torch.layers import LayerSpec
from engine.runners.torch.pool import KvPool
from engine.runners.torch.step import Span
from tests.engine.driver import Driver, Line, path
from tests.engine.paged_kernel import PagedDriver, page_major, paged_kernel
from tests.engine.tiny_models import FAMILIES, tiny_model

CPU = torch.device("cpu")


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(3, 64, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_equal(driver: PagedDriver, line: Line, logits: Tensor) -> None:
    expected = driver.eager(line.tokens[: line.computed])[-len(logits) :]
    assert (logits - expected).abs().max() <= 1e-4


@pytest.fixture(scope="module", params=sorted(FAMILIES.keys() - {"gemma2"}))  # its layers all have soft caps
def driver(request: pytest.FixtureRequest) -> PagedDriver:
    return PagedDriver(tiny_model(request.param))


def test_chunks_decodes_and_mixtures(driver: PagedDriver) -> None:
    lines = [driver.line(tokens(n, n)) for n in (19, 6, 11, 4)]
    driver.step((lines[0], 7), (lines[1], 6))
    out = driver.step((lines[2], 11), (lines[0], 12), (lines[3], 4))
    for line in (lines[0], lines[2], lines[3]):
        assert_equal(driver, line, out[line])
    for t in range(5):  # from the second step on as many rows as query heads: lse's axes have one size
        for line in lines:
            line.tokens.append(tokens(1, 10 * t + line.computed)[0])
        out = driver.step(*[(line, 1) for line in lines])
        for line in lines:
            assert_equal(driver, line, out[line])
    lines[0].tokens.append(5)
    lines[1].tokens += [6, 7, 8]
    out = driver.step((lines[0], 1), (lines[1], 3))
    for line in lines[:2]:
        assert_equal(driver, line, out[line])


def test_trees_gather_and_grow(driver: PagedDriver) -> None:
    line = driver.line(tokens(11, 11))
    driver.step((line, 10))
    drafts, parents = [line.tokens[10], *tokens(5, 12)], [-1, 0, 0, 1, 1, 2]
    logits = driver.tree(line, drafts, parents)
    for row in range(len(drafts)):
        expected = driver.eager(line.tokens[:10] + [drafts[i] for i in path(parents, row)])[-1]
        assert (logits[row] - expected).abs().max() <= 1e-4
    drafts, parents = drafts + tokens(2, 13), [*parents, 3, 5]
    logits = driver.trees((line, drafts, parents, 6))[line]
    for row in (6, 7):
        expected = driver.eager(line.tokens[:10] + [drafts[i] for i in path(parents, row)])[-1]
        assert (logits[row - 6] - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", ["gpt_oss", "llama4_text", "gemma2"])
def test_gathered_prompts_are_computed_in_blocks_of_bounded_size(kind: str) -> None:
    driver = Driver(tiny_model(kind), "gather")
    page_major(driver.pool)
    backend = GatherAttention(driver.pool, score_bytes=4 * 4 * 20 * 3)  # three rows of four heads over twenty keys
    driver.forward = Forward(driver.loaded.model, backend)
    line = driver.line(tokens(20, 3))
    assert_equal(driver, line, driver.step((line, 20))[line])


def test_block_table_pads_with_the_dummy_page() -> None:
    spans = [Span(0, 3, 6, ((8, 16), (24, 25))), Span(3, 1, 0, ((40, 41),))]
    table = block_table(spans, 4, rows=4)
    assert table.used.tolist() == [9, 1, 1, 1] and table.ends.tolist() == [0, 9, 10, 11, 12]
    assert table.pages.tolist() == [[2, 3, 6], [10, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert {table.used.dtype, table.ends.dtype, table.pages.dtype} == {np.dtype(np.int32)}


def spec(**changes: object) -> LayerSpec:
    return LayerSpec(**{**dict(query_heads=4, kv_heads=2, key_size=16, value_size=16, scale=0.25), **changes})


def pool_of(layers: list[LayerSpec], page: int = 256, dtype: torch.dtype = torch.bfloat16) -> KvPool:
    return page_major(KvPool(layers, 2, page, dtype, CPU))


@pytest.mark.parametrize(
    ("pool", "capability", "why"),
    [
        (pool_of([spec()]), (7, 5), "compute capability"),
        (pool_of([spec()], dtype=torch.float32), (9, 0), "float32"),
        (pool_of([spec()], page=64), (9, 0), "page_size is 64"),
        (pool_of([spec(key_size=20), spec(softcap=50.0), spec(chunk=8), spec(key_size=264)]), (9, 0), "soft caps"),
        (pool_of([spec(), spec(softcap=50.0)]), (8, 0), None),
        (pool_of([spec()], dtype=torch.float16, page=512), (12, 0), None),
    ],
)
def test_preconditions_of_the_kernel(pool: KvPool, capability: tuple[int, int], why: str | None) -> None:
    found = refusal(pool, capability)
    assert found is None if why is None else why in found


def test_a_log_sum_exp_in_another_layout_is_refused() -> None:
    def transposed(*args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        out, lse = paged_kernel(*args, **kwargs)
        return out, lse.t()

    with pytest.raises(KernelError, match=r"\[5, 4, 16\] and \[5, 4\]"):
        CudaAttention(pool_of([spec()]), transposed)


def test_a_kernel_that_wants_no_cumulated_counts_gets_none() -> None:
    given = []

    def other(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, ends: object, *rest: object, **named: object) -> object:
        if ends is not None:
            raise RuntimeError("cu_seqlens_k and a page table exclude each other")
        given.append(ends)
        return paged_kernel(q, k, v, starts, starts, *rest, **named)

    driver = PagedDriver(tiny_model("llama"), kernel=other)
    line = driver.line(tokens(9, 1))
    assert_equal(driver, line, driver.step((line, 9))[line])
    assert len(given) == 5  # the probe and four layers


def test_a_kernel_that_takes_neither_form_is_refused_with_both_reasons() -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no kernel image is available\nmore")

    with pytest.raises(KernelError, match="no kernel image is available; no kernel image"):
        CudaAttention(pool_of([spec()]), never)


def test_torchs_own_kernel_takes_these_arguments_and_declares_this_layout() -> None:
    """Shapes only: torch's op knows what it returns without a GPU."""
    with FakeTensorMode():
        pool = pool_of([spec(), spec(window=7, sinks=torch.zeros(4)), spec(kv_heads=4)])
        backend = CudaAttention(pool)
        rows = torch.arange(4)
        lengths = torch.ones(4, dtype=torch.int32)
        backend.follow(Plan(rows, torch.arange(5, dtype=torch.int32), lengths, lengths, lengths[:, None], 1, 1))
        for layer, one in enumerate(pool.layers):
            query, key, value = (
                torch.zeros(1, n, 4, 16, dtype=torch.bfloat16) for n in (4, one.kv_heads, one.kv_heads)
            )
            assert backend.attend(layer, query, key, value).shape == (1, 4, 4, 16)
