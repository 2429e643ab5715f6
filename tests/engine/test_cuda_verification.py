"""What is checked before a backend serves anybody: each way to be wrong is found, and the next backend takes over."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.runners.torch import attention_choice, attention_cuda
from engine.runners.torch.attention_cuda import CudaAttention
from engine.runners.torch.attention_gather import GatherAttention
from engine.runners.torch.gate import UnsupportedModelError
from engine.runners.torch.loader import check
from engine.runners.torch.pool import KvPool
from engine.runners.torch.verification import difference
from engine.settings import EngineSettings
from tests.engine.paged_kernel import page_major, paged_kernel
from tests.engine.tiny_models import FAMILIES, tiny_model

Kernel = Callable[..., tuple[Tensor, Tensor]]


def changed(**changes: Callable[[object], object]) -> Kernel:
    """The kernel with some keyword arguments replaced."""

    def kernel(*args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        return paged_kernel(*args, **{**kwargs, **{name: change(kwargs[name]) for name, change in changes.items()}})

    return kernel


def wrong_lse(*args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
    out, lse = paged_kernel(*args, **kwargs)
    return out, lse.t().reshape(lse.shape)  # right shape, rows and heads mixed up


def blind_to_neighbours(*args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
    out, lse = paged_kernel(*args, **kwargs)
    return out.nan_to_num() if len(out) < 3 else out.index_fill(0, torch.tensor([len(out) - 1]), float("nan")), lse


BROKEN = {
    "one key too many": changed(window_size=lambda w: (w[0] + 1 if w[0] >= 0 else -1, 0)),
    "one key too few": changed(window_size=lambda w: (w[0] - 1 if w[0] >= 0 else -1, 0)),
    "no window": changed(window_size=lambda w: (-1, 0)),
    "own scale": changed(scale=lambda s: 0.5 * s),
    "pages in order of their ids": changed(block_table=lambda t: t.sort(1).values),
    "lse of another order": wrong_lse,
    "nan in the last row": blind_to_neighbours,
}


def setting(kind: str, page: int, dtype: torch.dtype, pages: int = 24) -> tuple[torch.nn.Module, KvPool]:
    with torch.inference_mode():
        loaded = check(tiny_model(kind).to(dtype), EngineSettings())
        return loaded.model, page_major(KvPool(loaded.layers, pages, page, dtype, loaded.device))


@pytest.mark.parametrize("page", [4, 16, 256])
@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_right_backends_pass_and_leave_nothing_behind(kind: str, page: int) -> None:
    model, pool = setting(kind, page, torch.float32)
    backends = [GatherAttention(pool)]
    if kind != "gemma2":  # its layers all have soft caps
        backends.append(CudaAttention(pool, paged_kernel))
    for backend in backends:
        assert difference(model, backend, pool) is None
    assert not any(store[pool.page_size :].any() for store in (*pool.keys, *pool.values))


@pytest.mark.parametrize("pages", [2, 3, 4])
def test_pools_of_few_pages_can_be_checked(pages: int) -> None:
    for page in (4, 16, 256):
        model, pool = setting("gpt_oss", page, torch.float32, pages)
        assert difference(model, CudaAttention(pool, paged_kernel), pool) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes(dtype: torch.dtype) -> None:
    model, pool = setting("gpt_oss", 256, dtype, 6)
    assert difference(model, CudaAttention(pool, paged_kernel), pool) is None


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_kernels_are_found(name: str, dtype: torch.dtype) -> None:
    model, pool = setting("gpt_oss", 256, dtype, 6)
    assert difference(model, CudaAttention(pool, BROKEN[name]), pool) is not None


@pytest.mark.parametrize("window", [128, 1024, 4096])
def test_a_key_too_many_is_found_at_the_border_of_large_windows(window: int) -> None:
    model, pool = setting("mistral", 256, torch.bfloat16, 24)
    pool.layers[:] = [layer.__class__(**{**vars(layer), "window": window}) for layer in pool.layers]
    assert difference(model, CudaAttention(pool, paged_kernel), pool) is None
    found = difference(model, CudaAttention(pool, BROKEN["one key too many"]), pool)
    assert found is not None and "keys" in found


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[[Kernel, tuple[int, int]], None]:
    def set_to(kernel: Kernel, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(attention_cuda.varlen, "varlen_attn", kernel)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return set_to


def test_the_kernel_is_chosen_when_it_is_right(device: Callable[..., None]) -> None:
    device(paged_kernel)
    assert isinstance(attention_choice.choose(*setting("gpt_oss", 256, torch.bfloat16, 6)), CudaAttention)


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_kernel_gives_way_to_gathering_and_the_log_says_why(
    device: Callable[..., None], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    device(BROKEN[name])
    with caplog.at_level(logging.WARNING):
        assert isinstance(attention_choice.choose(*setting("gpt_oss", 256, torch.bfloat16, 6)), GatherAttention)
    assert "kernel is not used: layer" in caplog.text


@pytest.mark.parametrize(
    ("page", "dtype", "capability", "why"),
    [
        (16, torch.bfloat16, (9, 0), "page_size is 16"),
        (256, torch.float32, (9, 0), "not float32"),
        (256, torch.bfloat16, (7, 0), "the device has 7.0"),
    ],
)
def test_missing_preconditions_are_logged(
    device: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    page: int,
    dtype: torch.dtype,
    capability: tuple[int, int],
    why: str,
) -> None:
    device(paged_kernel, capability)
    with caplog.at_level(logging.WARNING):
        assert isinstance(attention_choice.choose(*setting("llama", page, dtype, 6)), GatherAttention)
    assert why in caplog.text


def test_a_kernel_that_raises_gives_way_to_gathering(device: Callable[..., None]) -> None:
    calls = []

    def later(*args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        calls.append(args)
        if len(calls) > 3:
            raise RuntimeError("CUDA error: invalid configuration argument")
        return paged_kernel(*args, **kwargs)

    device(later)
    assert isinstance(attention_choice.choose(*setting("llama", 256, torch.bfloat16, 6)), GatherAttention)


def test_a_model_is_refused_when_gathering_is_wrong_too(
    device: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    device(BROKEN["own scale"])
    read = GatherAttention.read
    monkeypatch.setattr(GatherAttention, "read", lambda self, layer, spec, query: read(self, layer, spec, -query))
    with pytest.raises(UnsupportedModelError, match="attention_differs: layer 0"):
        attention_choice.choose(*setting("llama", 256, torch.bfloat16, 6))
