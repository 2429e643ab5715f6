"""From settings to the arguments of vLLM's engine. Needs no vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from engine.runners.vllm.arguments import engine_arguments
from engine.settings import EngineSettings, SettingsError
from server.config import ConfigError, ServeConfig, load_config
from server.runners import check_runner_settings


def test_settings_have_the_names_of_vllm() -> None:
    settings = EngineSettings(max_seqs=8, max_model_len=256, page_size=32, kv_bytes=2**20, replay=False)
    found = engine_arguments("folder", settings, {"tensor_parallel_size": 2})
    assert found["model"] == "folder"
    assert (found["max_num_seqs"], found["max_model_len"], found["block_size"]) == (8, 256, 32)
    assert found["kv_cache_memory_bytes"] == 2**20
    assert found["enforce_eager"] is True
    assert found["tensor_parallel_size"] == 2


def test_the_operator_may_change_what_is_usual() -> None:
    found = engine_arguments("folder", EngineSettings(), {"max_logprobs": 20})
    assert found["max_logprobs"] == 20


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        (
            {},
            {"logits_processors": ["a:B"]},
            "'logits_processors' cannot be given: samplers are how requests name them",
        ),
        ({}, {"spec_method": "ngram"}, "'spec_method' cannot be given: it is a part of 'speculative_config'"),
        ({}, {"model": "other"}, "'model' cannot be given: it is the setting 'model'"),
        ({"max_seqs": 4}, {"max_num_seqs": 8}, "'max_num_seqs' is the setting 'max_seqs', which is given too"),
        ({"device": "cuda"}, {}, "setting 'device' belongs to the torch runner"),
        ({"threads": 2}, {}, "setting 'threads' belongs to the torch runner"),
        ({"max_seqs": 0}, {}, "max_seqs must be at least 1"),
    ],
)
def test_what_cannot_be_given(settings: dict[str, Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        engine_arguments("folder", EngineSettings(**settings), given)


def test_arguments_come_from_files_flags_and_variables() -> None:
    expected = {"tensor_parallel_size": 2, "enforce_eager": True, "kv_cache_dtype": "fp8"}
    flags = load_config({"vllm_args": ["tensor-parallel-size=2", "enforce_eager=true", "kv_cache_dtype=fp8"]}, {})
    assert flags.vllm_args == expected
    text = "tensor_parallel_size=2,enforce_eager=true,kv_cache_dtype=fp8"
    assert load_config({}, {"DRAFTHOUSE_VLLM_ARGS": text}).vllm_args == expected
    nested = load_config({}, {"DRAFTHOUSE_VLLM_ARGS": '{"compilation_config": {"mode": 0}, "seed": 1}'})
    assert nested.vllm_args == {"compilation_config": {"mode": 0}, "seed": 1}


@pytest.mark.parametrize(
    "given", [{"vllm_args": {"seed": 1}}, {"vllm_native": False}, {"vllm_filter_mode": "never"}, {"headless": True}]
)
def test_settings_of_this_runner_say_nothing_to_the_other(given: dict[str, Any]) -> None:
    check_runner_settings(ServeConfig(runner="vllm", **given))
    with pytest.raises(ConfigError, match=f"'{next(iter(given))}' belongs to the vllm runner"):
        check_runner_settings(ServeConfig(runner="torch", **given))


@pytest.mark.parametrize("text", ["seed", "{a: [}", "a=[1"])
def test_malformed_arguments_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="vllm_args"):
        load_config({}, {"DRAFTHOUSE_VLLM_ARGS": text})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vllm_args": {"seed": 1}}, "'vllm_args' belongs to the vllm runner"),
        ({"runner": "vllm", "draft_model": "drafthouse-tiny-draft"}, "'draft_model' belongs to the torch runner"),
        ({"runner": "vllm", "ngrams": "file.npz"}, "'ngrams' belongs to the torch runner"),
        ({"runner": "vllm", "spec_past_outputs": True}, "'spec_past_outputs' belongs to the torch runner"),
    ],
)
def test_settings_of_the_other_runner_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_runner_settings(ServeConfig(**options))
