"""Models that cannot run are refused at load with the reason; those that can get the right layer constants."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from engine.runners.torch.executor import TorchExecutor
from engine.runners.torch.gate import HINT, UnsupportedModelError, inspect
from engine.runners.torch.loader import MIN_TOKENS, check, sizes
from engine.runners.torch.pool import bytes_per_token
from engine.settings import EngineSettings, SettingsError
from tests.engine.driver import Driver
from tests.engine.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("mamba", "layer_type:linear_attention"),
        ("jamba", "layer_type:linear_attention"),
        ("bloom", "no_attention_backend"),
        ("mpt", "no_attention_backend"),
        ("stablelm", "no_attention_backend"),
        ("diffllama", "calls_per_layer"),
        ("nemotron", "step_not_forwarded"),
        ("doge", "own_mask"),
    ],
)
def test_refused_with_the_reason_and_a_hint(kind: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        check(tiny_model(kind), EngineSettings())
    assert caught.value.reason.startswith(reason), caught.value.reason
    assert kind in str(caught.value) and HINT in str(caught.value)
    assert "--runner vllm" in HINT


def test_values_wider_than_keys_are_refused_with_a_reason() -> None:
    with pytest.raises(UnsupportedModelError, match="value_size:32 > 24"):
        check(tiny_model("deepseek_v3", v_head_dim=32), EngineSettings())


def test_a_backend_that_fails_is_a_refusal_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr("engine.runners.torch.gate.PlainAttention.attend", broken)
    with pytest.raises(UnsupportedModelError, match="forward_failed:RuntimeError: injected"):
        check(tiny_model("llama"), EngineSettings())


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "gpt_oss", "llama"])
def test_experts_that_flip_in_half_precision_are_no_reason_to_refuse(kind: str) -> None:
    for seed in range(6):
        model = tiny_model(kind, seed).bfloat16()
        before = tensors(model)
        loaded = check(model, EngineSettings())
        assert loaded.dtype == torch.bfloat16
        assert before == tensors(model)


def tensors(model: nn.Module) -> dict[str, tuple[torch.dtype, int]]:
    """Type and place of everything but the embedding table, which gets rows for mixtures."""
    every = [*model.named_parameters(), *model.named_buffers()]
    return {name: (t.dtype, t.data_ptr()) for name, t in every if "embed_tokens" not in name}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "quantised"])
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_a_model_that_ignores_us_is_caught_by_its_logits(
    kind: str, dtype: torch.dtype | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(kind)
    if dtype == "quantised":
        monkeypatch.setattr("engine.runners.torch.gate.can_be_widened", lambda _: False)
        check(tiny_model("llama").bfloat16(), EngineSettings())  # the comparison in bf16 lets a right one pass
        model = model.bfloat16()
    else:
        model = model.to(dtype)
    inner = model.model.layers[2].self_attn
    plain = inner.forward

    def biased(*args: object, **kwargs: object) -> object:
        out, weights = plain(*args, **kwargs)
        # depends on the neighbours in the packed row, as recurrent state would
        return out + 0.1 * out.cumsum(1), weights

    inner.forward = biased
    with pytest.raises(UnsupportedModelError, match="differs_from_eager"):
        check(model, EngineSettings())


def test_layer_constants_are_read_from_the_calls() -> None:
    with torch.inference_mode():
        gemma = inspect(Driver(tiny_model("gemma2")).loaded.model)
        sinks = inspect(Driver(tiny_model("gpt_oss")).loaded.model)
        chunked = inspect(Driver(tiny_model("llama4_text")).loaded.model)
    assert [layer.window for layer in gemma] == [7, None, 7, None]
    assert all(layer.softcap == 50.0 for layer in gemma)
    assert all(layer.sinks is not None and layer.sinks.shape == (4,) for layer in sinks)
    assert [layer.chunk for layer in chunked] == [8, 8, 8, None]


def test_windows_that_only_the_config_knows() -> None:
    model = tiny_model("qwen2_moe", sliding_window=7, use_sliding_window=True, layer_types=["sliding_attention"] * 4)
    driver = Driver(model)
    assert [layer.window for layer in driver.loaded.layers] == [7] * 4
    line = driver.line(list(range(3, 30)))
    logits = driver.step((line, 27))[line]
    assert (logits - driver.eager(line.tokens)).abs().max() <= 1e-4


def test_a_window_kept_in_the_mask_caps_the_context() -> None:
    loaded = check(tiny_model("phimoe", sliding_window=32), EngineSettings())
    assert loaded.max_model_len == 32
    with pytest.raises(SettingsError, match="max_model_len"):
        check(tiny_model("phimoe", sliding_window=32), EngineSettings(max_model_len=64))


def test_longrope_is_capped_where_its_frequencies_switch() -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 64,
        "long_factor": [2.0] * 8,
        "short_factor": [1.0] * 8,
        "partial_rotary_factor": 1.0,
    }
    model = tiny_model("phi3", rope_parameters=rope, original_max_position_embeddings=64, hidden_size=64)
    assert check(model, EngineSettings()).max_model_len == 64


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"page_size": 48}, "page_size"),
        ({"kv_bytes": 1000}, "kv_bytes"),
        ({"max_seqs": 64, "max_batch_tokens": 8}, "max_batch_tokens"),
        ({"max_model_len": 10**6}, "max_model_len"),
        ({"max_seqs": 0}, "max_seqs"),
        ({"max_queued_tokens": -5}, "max_queued_tokens"),
        ({"max_queued_requests": -1}, "max_queued_requests"),
        ({"max_model_len": 8, "page_size": 1, "max_seqs": 1, "kv_bytes": 8 * 1024}, "kv_bytes .* 12"),
    ],
)
def test_wrong_settings_are_errors_that_name_the_setting(changes: dict[str, int], name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        settings = EngineSettings(**changes)
        sizes(check(tiny_model("llama"), settings), settings)


def test_no_queue_at_all_is_a_setting() -> None:
    settings = EngineSettings(max_queued_tokens=0)
    assert sizes(check(tiny_model("llama"), settings), settings).max_queued_tokens == 0


def test_the_smallest_memory_is_large_enough_to_check_the_replayed_forward() -> None:
    settings = EngineSettings(max_model_len=8, page_size=1, max_seqs=1, max_batch_tokens=8)
    loaded = check(tiny_model("llama"), settings)
    for one in (settings, replace(settings, kv_bytes=MIN_TOKENS * bytes_per_token(loaded.layers, loaded.dtype))):
        with torch.inference_mode():
            assert TorchExecutor(loaded, sizes(loaded, one)).model.forward.program is not None
