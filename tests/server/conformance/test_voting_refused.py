"""`voting` that cannot be had: a 400 that names the field, on both endpoints; presets with it are refused at start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.presets import PresetError, check_presets
from server.state import Limits
from tests.server.conformance.answers import body, wait_released
from tests.server.conformance.helpers import PROMPT, post_chat, post_completion, refused
from tests.server.live import Live, fake_state, start

POSTS = pytest.mark.parametrize("post", [post_chat, post_completion])
ONLINE = {"rule": "deepconf", "params": {"mode": "online", "warmup": 2}, "samples": 4}
CHAIN = {"rule": "iew", "params": {"mode": "sequential"}, "samples": 3}
# a `voting` object, and what its error names
OBJECTS: list[tuple[Any, str]] = [
    ("sc", "voting"),
    ([], "voting"),
    (3, "voting"),
    ({"rule": "majority"}, "voting.rule"),
    ({"rule": 3}, "voting.rule"),
    ({"rule": ""}, "voting.rule"),
    ({"rule": ["sc"]}, "voting.rule"),
    ({"k": 4}, "voting.k"),
    ({"sample": 4}, "voting.sample"),
    ({"": 4}, "voting."),
    ({"samples": 0}, "voting.samples"),
    ({"samples": -1}, "voting.samples"),
    ({"samples": 513}, "voting.samples"),
    ({"samples": 10**30}, "voting.samples"),
    ({"samples": "4"}, "voting.samples"),
    ({"samples": 2.5}, "voting.samples"),
    ({"samples": True}, "voting.samples"),
    ({"samples": [4]}, "voting.samples"),
    ({"params": 3}, "voting.params"),
    ({"params": {"prune": True}}, "voting.params.prune"),
    ({"rule": "rpc", "params": {"prune": "yes"}}, "voting.params.prune"),
    ({"rule": "rpc", "params": {"min_paths": 0}}, "voting.params.min_paths"),
    ({"rule": "rpc", "params": {"min_paths": 513}}, "voting.params.min_paths"),
    ({"rule": "rpc", "params": {"fit_set": "some"}}, "voting.params.fit_set"),
    ({"rule": "rpc", "params": {"score": "median"}}, "voting.params.score"),
    ({"rule": "rpc", "params": {"w": 0.5}}, "voting.params.w"),
    ({"rule": "complexity", "params": {"keep": 0}}, "voting.params.keep"),
    ({"rule": "complexity", "params": {"keep": 1.5}}, "voting.params.keep"),
    ({"rule": "deepconf", "params": {"topk": 1}}, "voting.params.topk"),
    ({"rule": "deepconf", "params": {"topk": 101}}, "voting.params.topk"),
    ({"rule": "deepconf", "params": {"window": 0}}, "voting.params.window"),
    ({"rule": "deepconf", "params": {"mode": "online", "warmup": 0}}, "voting.params.warmup"),
    ({"rule": "deepconf", "params": {"mode": "online", "warmup": 17}}, "voting.params.warmup"),
    ({"rule": "deepconf", "params": {"eta": 101}}, "voting.params.eta"),
    ({"rule": "deepconf", "params": {"confidence_percentile": -1}}, "voting.params.confidence_percentile"),
    ({"rule": "iew", "params": {"mode": "both"}}, "voting.params.mode"),
    ({"rule": "bon"}, "voting.params.scorer"),
    ({"rule": "bon", "params": {"scorer": "nobody"}}, "voting.params.scorer"),
    ({"rule": "bon", "params": {"scorer": {"model": "nobody"}}}, "voting.params.scorer.model"),
    ({"rule": "bon", "params": {"scorer": "likelihood", "aggregate": "cluster_sum"}}, "voting.params.aggregate"),
    ({"stop": "soon"}, "voting.stop"),
    ({"stop": {"rule": "soon"}}, "voting.stop.rule"),
    ({"stop": {}}, "voting.stop.rule"),
    ({"stop": 3}, "voting.stop"),
    ({"stop": {"rule": "beta", "thresold": 0.9}}, "voting.stop.thresold"),
    ({"stop": {"rule": "beta", "threshold": 0.5}}, "voting.stop.threshold"),
    ({"stop": {"rule": "beta", "threshold": 1}}, "voting.stop.threshold"),
    ({"stop": {"rule": "beta", "every": 0}}, "voting.stop.every"),
    ({"stop": {"rule": "esc", "window": 0}}, "voting.stop.window"),
    ({"stop": {"rule": "esc", "answer_from": "it"}}, "voting.stop.answer_from"),
    ({"stop": {"rule": "mode_cert", "alpha": 0}}, "voting.stop.alpha"),
    ({"stop": {"rule": "mode_cert", "alpha": 0.51}}, "voting.stop.alpha"),
    ({"stop": {"rule": "mode_cert", "warmup": 0}}, "voting.stop.warmup"),
    ({"stop": {"rule": "mode_cert", "max_targets": 0}}, "voting.stop.max_targets"),
    ({"extract": "first_number"}, "voting.extract"),
    ({"extract": 3}, "voting.extract"),
    ({"extract": {"regex": "("}}, "voting.extract.regex"),
    ({"extract": {"regex": "(?=a)"}}, "voting.extract.regex"),
    ({"extract": {"regex": r"(a)\1"}}, "voting.extract.regex"),
    ({"extract": {"regex": 3}}, "voting.extract.regex"),
    ({"extract": {"regex": "a", "group": 1}}, "voting.extract.group"),
    ({"extract": {"json_path": "x["}}, "voting.extract.json_path"),
    ({"extract": {"regex": "a", "groups": 0}}, "voting.extract.groups"),
    ({"extract": {"name": "boxed", "allow_last_number": True}}, "voting.extract.allow_last_number"),
    ({"equiv": "roughly"}, "voting.equiv"),
    ({"equiv": {"name": "exact", "percent": "yes"}}, "voting.equiv.percent"),
    ({"on_truncated": "drop"}, "voting.on_truncated"),
    ({"guard_repetition": 1}, "voting.guard_repetition"),
    ({"use_sample_weights": "no"}, "voting.use_sample_weights"),
    ({"return_samples": "all"}, "voting.return_samples"),
    ({"reallocate": 1, "stop": "esc"}, "voting.reallocate"),
    ({"reallocate": True}, "voting.reallocate"),
    ({**CHAIN, "reallocate": True, "stop": "esc"}, "voting.reallocate"),
]
# a scorer's name depends on what else is served, sense or nonsense of `reallocate` on the rest of a request
PRESETS = [one for one, param in OBJECTS if "'scorer'" not in str(one) and "'reallocate': True" not in str(one)]
# fields of a request, and what its error names
TOGETHER: list[tuple[dict[str, Any], str, str | None]] = [
    ({"n": 2, "voting": {}}, "n", None),
    ({"n": 2, "voting": {"samples": 2}}, "n", None),
    ({"temperature": 0, "voting": {}}, "temperature", "degenerate_sampling"),
    ({"temperature": 1e-6, "voting": {"samples": 2}}, "temperature", "degenerate_sampling"),
    ({"draw": "arithmetic", "voting": {"stop": "mode_cert"}}, "voting.stop", "not_iid"),
    ({"voting": {**CHAIN, "stop": "mode_cert"}}, "voting.stop", "not_iid"),
    ({"voting": {**ONLINE, "stop": "mode_cert"}}, "voting.stop", "not_iid"),
    ({"draw": "arithmetic", "voting": CHAIN}, "voting.rule", None),
    ({"draw": "arithmetic", "voting": ONLINE}, "voting.rule", None),
    ({"logprobs_mode": "processed", "voting": {"rule": "deepconf"}}, "logprobs_mode", None),
    ({"logprobs_mode": "processed", "voting": {"rule": "iew"}}, "logprobs_mode", None),
    ({"voting": {}, "vllm_xargs": {"voting": {}}}, "vllm_xargs.voting", None),
    ({"vllm_xargs": {"voting": "{"}}, "vllm_xargs.voting", None),
    ({"vllm_xargs": {"voting": {"samples": 0}}}, "voting.samples", None),
]


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Live]:
    live = start(fake_state())
    yield live
    live.stop()


@pytest.fixture(autouse=True)
def nothing_was_drawn(raw: httpx.Client, live: Live) -> Iterator[None]:
    yield
    assert not live.runner.requests
    wait_released(raw)


@POSTS
@pytest.mark.parametrize(("voting", "param"), OBJECTS, ids=lambda value: str(value)[:50])
def test_objects(raw: httpx.Client, post: Any, voting: Any, param: str) -> None:
    refused(post(raw, voting=voting), param)


@POSTS
@pytest.mark.parametrize(("fields", "param", "code"), TOGETHER, ids=lambda value: str(value)[:50])
def test_together(raw: httpx.Client, post: Any, fields: dict[str, Any], param: str, code: str | None) -> None:
    for streamed in (False, True):
        error = refused(post(raw, stream=streamed, **fields), param)
        assert code is None or error["code"] == code


def test_completions(raw: httpx.Client) -> None:
    refused(post_completion(raw, best_of=3, voting={}), "best_of")
    refused(post_completion(raw, best_of=1, voting={}), "best_of")
    refused(post_completion(raw, max_tokens=0, echo=True, voting={}), "max_tokens")
    refused(post_completion(raw, prompt=[PROMPT] * 9, voting={"samples": 500}), "voting.samples")


@pytest.mark.parametrize("voting", PRESETS, ids=lambda value: str(value)[:50])
def test_presets(live: Live, voting: Any) -> None:
    runner, codec = live.runner, live.codec
    with pytest.raises(PresetError, match="preset 'bad'"):
        check_presets({"bad": {"voting": voting}}, codec, runner.vocab_size, runner.max_model_len, runner.facts)


def test_a_smaller_limit() -> None:
    state = fake_state(limits=Limits(max_k=10))
    live = start(state)
    try:
        with httpx.Client(base_url=live.url, timeout=30) as raw:
            refused(post_chat(raw, voting={"samples": 11}), "voting.samples")
            for voting in ({}, {"stop": "beta"}):
                assert body(post_chat(raw, voting=voting))["drafthouse"]["voting"]["samples"] == 10
        model = state.models[0]
        with pytest.raises(PresetError):
            check_presets({"x": {"voting": {"samples": 11}}}, model.tokenizer, 4096, 512, max_k=10)
    finally:
        live.stop()
