"""On a GPU (`pytest -m cuda`): the real kernel and real graphs against Hugging Face's own eager attention."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import nn

from engine.pages import Pages
from engine.runners.torch.attention_choice import choose
from engine.runners.torch.attention_cuda import CudaAttention, refusal
from engine.runners.torch.attention_gather import GatherAttention
from engine.runners.torch.attention_plain import PlainAttention
from engine.runners.torch.executor import TorchExecutor
from engine.runners.torch.forward import Forward
from engine.runners.torch.loader import check, sizes
from engine.runners.torch.packing import Chunk, order, pack
from engine.runners.torch.pool import KvPool
from engine.runners.torch.verification import difference
from engine.settings import EngineSettings
from tests.engine.tiny_models import FAMILIES, tiny_model

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PAGE = 256
FUSED = sorted(FAMILIES.keys() - {"gemma2", "llama4_text"})  # soft caps, chunks


class DeviceDriver:
    """Branches of one model on the GPU; every call computes some tokens of some of them."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, pages: int = 48) -> None:
        model = model.to("cuda", dtype)
        self.reference = copy.deepcopy(model)
        self.reference.set_attn_implementation("eager")
        with torch.inference_mode():
            self.loaded = check(model, EngineSettings())
            self.pool = KvPool(self.loaded.layers, pages, PAGE, dtype, self.loaded.device)
        self.pages = Pages(pages, PAGE, contiguous=False)

    def forward(self, backend: object) -> Forward:
        return Forward(self.loaded.model, backend)

    @torch.inference_mode()
    def step(self, forward: Forward, shares: list[tuple[object, list[int], int]]) -> list[torch.Tensor]:
        """(branch, all its tokens, tokens computed before) -> logits [n, V] of the new tokens of each."""
        for branch, tokens, computed in shares:
            self.pages.append(branch, len(tokens) - max(computed, branch.length))
        shares = [shares[i] for i in order([branch for branch, _, _ in shares])]
        chunks = [Chunk(branch, computed, tokens[computed:]) for branch, tokens, computed in shares]
        counts = [len(chunk.tokens) for chunk in chunks]
        return list(forward(pack(self.pages, chunks, list(range(sum(counts))), self.loaded.device)).split(counts))

    @torch.inference_mode()
    def eager(self, tokens: list[int]) -> torch.Tensor:
        return self.reference(input_ids=torch.tensor([tokens], device="cuda"), use_cache=False).logits[0]


def prompt(count: int, seed: int) -> list[int]:
    return torch.randint(3, 64, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def close(given: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    """By the median row: in half precision single rows may choose other experts."""
    rows = (given.float() - expected.float()).abs().amax(1) / expected.float().abs().max()
    return bool(rows.median() <= tolerance)


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_fp32_decodes_greedily_what_eager_does(kind: str) -> None:
    driver = DeviceDriver(tiny_model(kind), torch.float32)
    backend = choose(driver.loaded.model, driver.pool)
    assert isinstance(backend, GatherAttention)
    forward, branch, tokens, computed = driver.forward(backend), driver.pages.new_branch(), prompt(23, 1), 0
    for _ in range(24):
        logits = driver.step(forward, [(branch, tokens, computed)])[0]
        expected = driver.eager(tokens)[-len(logits) :]
        assert (logits - expected).abs().max() <= 1e-3 * max(1.0, expected.abs().max().item())
        assert logits[-1].argmax() == expected[-1].argmax()
        computed = len(tokens)
        tokens = [*tokens, int(logits[-1].argmax())]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", FUSED)
def test_the_kernel_is_chosen_for_half_precision(kind: str, dtype: torch.dtype) -> None:
    """Sinks (gpt_oss), windows (mistral, gemma3_text, gpt_oss) and padded values (deepseek_v3) among them."""
    driver = DeviceDriver(tiny_model(kind), dtype)
    assert refusal(driver.pool, torch.cuda.get_device_capability()) is None
    assert difference(driver.loaded.model, CudaAttention(driver.pool), driver.pool) is None
    assert isinstance(choose(driver.loaded.model, driver.pool), CudaAttention)


@pytest.mark.parametrize("window", [128, 1024, 4096])
@pytest.mark.parametrize("kind", ["mistral", "gpt_oss"])
def test_borders_of_large_windows(kind: str, window: int) -> None:
    driver = DeviceDriver(tiny_model(kind), torch.bfloat16)
    driver.pool.layers[:] = [layer.__class__(**{**vars(layer), "window": window}) for layer in driver.pool.layers]
    assert difference(driver.loaded.model, CudaAttention(driver.pool), driver.pool) is None


@pytest.mark.parametrize("heads", [(8, 8), (8, 2), (6, 1), (64, 8)])
@pytest.mark.parametrize("size", [64, 80, 96, 128, 192, 256])
def test_head_counts_and_sizes(heads: tuple[int, int], size: int) -> None:
    shape = dict(num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=size, hidden_size=192)
    model = tiny_model("llama", **shape)
    driver = DeviceDriver(model, torch.bfloat16)
    assert difference(driver.loaded.model, CudaAttention(driver.pool), driver.pool) is None


@pytest.mark.parametrize("kind", FUSED)
def test_kernel_and_gathering_agree_on_mixed_steps(kind: str) -> None:
    driver = DeviceDriver(tiny_model(kind), torch.bfloat16)
    ways = [driver.forward(way(driver.pool)) for way in (CudaAttention, GatherAttention, PlainAttention)]
    branches = [driver.pages.new_branch() for _ in range(4)]
    texts = [prompt(n, n) for n in (250, 40, 9, 130)]
    history: list[list[tuple[object, list[int], int]]] = [
        [(branch, text, 0) for branch, text in zip(branches, texts, strict=True)]
    ]
    for t in range(8):  # the first sequence crosses into its second page
        shares = []
        for i, branch in enumerate(branches):
            count = 5 if (t + i) % 3 == 0 else 1
            text = [*history[-1][i][1], *prompt(count, 10 * t + i)]
            shares.append((branch, text, len(history[-1][i][1])))
        history.append(shares)
    for shares in history:
        fused, gathered, plain = (driver.step(way, shares) for way in ways)
        assert close(torch.cat(fused), torch.cat(plain), 5e-2) and close(torch.cat(gathered), torch.cat(plain), 5e-2)


@pytest.mark.parametrize("kind", FUSED)
def test_graphs_equal_the_eager_forward(kind: str) -> None:
    driver = DeviceDriver(tiny_model(kind), torch.bfloat16)
    backend = CudaAttention(driver.pool)
    eager, graphed = driver.forward(backend), driver.forward(backend)
    if not graphed.use_graphs(16, 256):
        pytest.skip("this model's forward pass cannot be captured; the log says why")
    branches = [driver.pages.new_branch() for _ in range(11)]
    texts = [prompt(5 + 7 * i, i) for i in range(11)]
    driver.step(eager, [(branch, text, 0) for branch, text in zip(branches, texts, strict=True)])
    for t, rows in enumerate((11, 1, 2, 3, 7, 8, 9, 11)):
        shares = []
        for i in range(rows):
            texts[i] = [*texts[i], *prompt(1, 100 * t + i)]
            shares.append((branches[i], texts[i], len(texts[i]) - 1))
        before = [store.clone() for store in driver.pool.keys]
        replayed = torch.cat(driver.step(graphed, shares))
        written = {driver.pages.slot(branch, computed) for branch, _, computed in shares}
        for old, new in zip(before, driver.pool.keys, strict=True):
            assert set((old != new).flatten(1).any(1).nonzero()[:, 0].tolist()) <= written | {0}
        assert close(replayed, torch.cat(driver.step(eager, shares)), 5e-2)
    assert graphed.graphs is not None


def test_a_dense_model_is_captured_and_faster_than_eager() -> None:
    driver = DeviceDriver(tiny_model("llama"), torch.bfloat16)
    backend = CudaAttention(driver.pool)
    eager, graphed = driver.forward(backend), driver.forward(backend)
    assert graphed.use_graphs(8, 256)
    branch = driver.pages.new_branch()
    text = prompt(20, 1)
    driver.step(eager, [(branch, text, 0)])
    seconds = []
    for forward in (eager, graphed):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(100):
            driver.step(forward, [(branch, text, len(text) - 1)])
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    assert seconds[1] < seconds[0], seconds


def test_a_result_does_not_depend_on_batch_mates() -> None:
    driver = DeviceDriver(tiny_model("llama"), torch.bfloat16)
    layer, spec = 0, driver.loaded.layers[0]
    backend = CudaAttention(driver.pool)
    inputs = [
        torch.randn(1, heads, 9, spec.key_size, device="cuda", dtype=torch.bfloat16)
        for heads in (spec.query_heads, spec.kv_heads, spec.kv_heads)
    ]
    branches = [driver.pages.new_branch() for _ in range(9)]
    for branch in branches:
        driver.pages.append(branch, 1)
    device = driver.loaded.device
    together = pack(driver.pages, [Chunk(branch, 0, [1]) for branch in branches], [], device)
    alone = pack(driver.pages, [Chunk(branches[0], 0, [1])], [], device)
    with torch.inference_mode():
        backend.prepare(together)
        out = backend.attend(layer, *inputs)[0, 0]
        backend.prepare(alone)
        assert torch.equal(backend.attend(layer, *[x[:, :, :1] for x in inputs])[0, 0], out)


@pytest.mark.parametrize("kind", ["llama", "gpt_oss", "gemma2"])
def test_an_engine_is_sized_and_starts(kind: str) -> None:
    settings = EngineSettings(max_seqs=8, max_batch_tokens=512)
    with torch.inference_mode():
        loaded = check(tiny_model(kind).to("cuda", torch.bfloat16), settings)
        resolved = sizes(loaded, settings)
        executor = TorchExecutor(loaded, resolved)
    assert resolved.page_size == PAGE and resolved.max_batch_tokens == 512
    assert isinstance(executor.model.backend, GatherAttention if kind == "gemma2" else CudaAttention)
