"""Sizing after a worst-case step: the arithmetic, and that the measured steps run; the device is made up."""

from __future__ import annotations

import pytest
import torch

from engine.runners.torch import memory
from engine.runners.torch.attention_gather import GatherAttention
from engine.runners.torch.forward import Forward
from engine.runners.torch.layers import LayerSpec
from engine.runners.torch.loader import check
from engine.runners.torch.memory import divide
from engine.runners.torch.pool import KvPool
from engine.settings import EngineSettings, SettingsError
from tests.engine.tiny_models import tiny_model

GIB = 2**30


@pytest.mark.parametrize(("rows", "tokens", "page"), [(8, 256, 4), (50, 12, 4), (7, 7, 16), (1, 1, 4), (20, 13, 8)])
def test_the_measured_steps_run(rows: int, tokens: int, page: int) -> None:
    with torch.inference_mode():
        loaded = check(tiny_model("gpt_oss"), EngineSettings())
        count = min(rows, tokens)
        pool = KvPool(loaded.layers, 2 + count // page, page, loaded.dtype, loaded.device)
        forward = Forward(loaded.model, GatherAttention(pool))
        assert forward(memory._prompts(rows, count, 64, loaded.device)).shape == (rows, 64)
        assert forward(memory._longest(tokens, page, loaded.device)).isfinite().all()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 GiB free; a step takes 1 MiB per row and runs out of memory beyond 9 GiB."""

    def forward_bytes(model: object, layers: list[LayerSpec], page: int, rows: int, tokens: int) -> int:
        if rows > 9 * 1024:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows * 2**20

    monkeypatch.setattr(memory, "forward_bytes", forward_bytes)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 16 * GIB))


@pytest.mark.parametrize(
    ("asked", "fewest", "rows"), [(1024, 256, 1024), (8192, 256, 4096), (65536, 256, 4096), (8192, 8192, 8192)]
)
def test_steps_are_halved_until_half_of_the_memory_is_left_for_keys(
    device: None, asked: int, fewest: int, rows: int
) -> None:
    room = divide(tiny_model("llama"), [], 256, asked, fewest, 4096)
    assert room.rows == rows and room.kv_bytes == int((10 * GIB - rows * 2**20) * 0.85)


def test_a_batch_that_cannot_fit_is_an_error_that_names_the_setting(device: None) -> None:
    with pytest.raises(SettingsError, match="max_batch_tokens 65536"):
        divide(tiny_model("llama"), [], 256, 65536, 65536, 4096)
