"""vLLM's own speculation: what operators may ask for, and what answers say of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.runners.vllm.arguments import engine_arguments
from engine.runners.vllm.speculation import engine_wide
from engine.settings import EngineSettings, SettingsError

GIVEN: dict[str, Any] = {"method": "ngram", "num_speculative_tokens": 3}
USUAL: dict[str, Any] = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "num_speculative_tokens_per_batch_size": None,
    "rejection_sample_method": "standard",
    "draft_sample_method": "greedy",
    "prompt_lookup_min": 2,
    "prompt_lookup_max": 4,
    "suffix_decoding_max_spec_factor": 1.0,
    "suffix_decoding_min_token_prob": 0.1,
    "suffix_decoding_max_tree_depth": 24,
}


def arguments(**changed: Any) -> dict[str, Any]:
    return engine_arguments("folder", EngineSettings(), {"speculative_config": GIVEN | changed})


def config(v2: bool = True, **changed: Any) -> Any:
    return SimpleNamespace(speculative_config=SimpleNamespace(**(USUAL | changed)), use_v2_model_runner=v2)


def test_a_speculation_is_passed_on() -> None:
    found = arguments(prompt_lookup_max=4)
    assert found["speculative_config"] == GIVEN | {"prompt_lookup_max": 4}
    assert found["per_request_spec_decode_metrics"] == "detailed"
    assert "per_request_spec_decode_metrics" not in engine_arguments("folder", EngineSettings(), {})


def test_suffixes_are_those_of_the_request() -> None:
    assert arguments(method="suffix")["speculative_config"]["suffix_decoding_max_cached_requests"] == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rejection_sample_method": "synthetic"}, "for benchmarks"),
        ({"synthetic_acceptance_length": 2.0}, "for benchmarks"),
        ({"enable_adaptive_verification": True}, "changes the law"),
        ({"method": "extract_hidden_states"}, "drafts nothing"),
        ({"method": "custom_class"}, "no name in requests"),
        ({"method": "suffix", "suffix_decoding_max_cached_requests": 5}, "must be 0"),
    ],
)
def test_what_is_no_lossless_speculation_ends_the_start(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        arguments(**changed)


def test_it_has_to_be_a_mapping() -> None:
    with pytest.raises(SettingsError, match="must be a mapping"):
        engine_arguments("folder", EngineSettings(), {"speculative_config": "ngram"})


@pytest.mark.parametrize(
    ("changed", "draft", "options", "temperature"),
    [
        ({}, "prompt_lookup", {"min": 2, "max": 4, "pick": "first"}, None),
        ({"method": "suffix"}, "suffix", {"scope": "request", "factor": 1.0, "offset": 0, "min_prob": 0.1,
                                          "max_depth": 24}, None),
        ({"method": "draft_model"}, "draft_model", {}, 0.0),
        ({"method": "draft_model", "draft_sample_method": "probabilistic"}, "draft_model", {}, None),
        ({"method": "eagle3"}, "heads", {}, 0.0),
        ({"method": "mtp"}, "heads", {}, 0.0),
    ],
)  # fmt: skip
def test_it_has_a_name_in_requests(changed: dict[str, Any], draft: str, options: Any, temperature: Any) -> None:
    found = engine_wide(config(**changed), 16)
    assert found is not None
    assert (found.source.name, found.source.options, found.draft_temperature) == (draft, options, temperature)
    assert (found.num_tokens, found.rule) == (3, "token")


def test_lengths_that_follow_the_load_are_no_number() -> None:
    found = engine_wide(config(num_speculative_tokens_per_batch_size=[(1, 8, 3)]), 16)
    assert found is not None and found.num_tokens is None


def test_block_verification_is_what_it_says_or_nothing() -> None:
    found = engine_wide(config(rejection_sample_method="block"), 16)
    assert found is not None and found.rule == "block"
    with pytest.raises(SettingsError, match="first generation"):
        engine_wide(config(v2=False, rejection_sample_method="block"), 16)


def test_drafts_are_no_longer_than_the_server_allows() -> None:
    with pytest.raises(SettingsError, match="'spec_max_len': 2 is less than the 3 tokens"):
        engine_wide(config(), 2)
    assert engine_wide(SimpleNamespace(speculative_config=None), 0) is None  # type: ignore[arg-type]


# --- what vLLM counts


def test_drafts_of_a_choice() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.metrics.stats import RequestSpecDecodeMetrics

    from engine.runners.vllm.statistics import drafts_of

    told = RequestSpecDecodeMetrics.new(3)
    for drafted, accepted in ((3, 1), (3, 3), (2, 0)):
        told.observe(drafted, accepted, detailed=True)
    assert drafts_of(told).report("detailed") == {
        "drafted": 8,
        "accepted": 4,
        "acceptance_by_offset": [2 / 3, 1 / 3, 1 / 2],
        "draft_lengths": {"2": 1, "3": 2},
    }


def test_sums_over_all_requests() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.spec_decode.metrics import SpecDecodingStats

    from engine.runners.vllm.statistics import Counters

    counters = Counters()
    step = SpecDecodingStats.new(3)
    step.observe_draft(3, 1)
    step.observe_draft(2, 2)
    cache = SimpleNamespace(hits=0)
    told: Any = SimpleNamespace(prefix_cache_stats=cache, spec_decoding_stats=step)
    done: Any = SimpleNamespace(
        num_generation_tokens=6,
        num_prompt_tokens=0,
        num_preempted_reqs=0,
        time_to_first_tokens_iter=[0.1],
        inter_token_latencies_iter=[0.1, 0.1],
    )
    counters.count(0, told, done)
    [(labels, found)] = counters.speculation("prompt_lookup").items()
    assert labels == ("prompt_lookup", "auto")
    assert (found.steps, found.drafted, found.accepted, found.emitted) == (3, 5, 3, 6)
    assert (dict(found.reached), dict(found.passed)) == ({1: 2, 2: 2, 3: 1}, {1: 2, 2: 1, 3: 0})
    assert +found.sizes == {0: 1, 2: 1, 3: 1}
