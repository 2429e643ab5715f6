"""`spec_decode` on the wire: what is refused, what the engine is told, and that reports say what was done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.request import DecodeRequest
from server.presets import PresetError, check_presets_of, usable_presets
from server.speculation import report
from server.state import Limits
from spec_decode.drafters.source import BaseSource
from spec_decode.request import SourceUse, SpecRequest
from spec_decode.statistics import SpecStatistics
from tests.server.conformance.helpers import MODEL, PROMPT, data_lines, post_chat, post_completion, refused
from tests.server.fake_runner import OFFER
from tests.server.live import Live, fake_state, start


class Model(BaseSource):
    """Stands for a draft model."""

    name = "draft_model"
    draws = branches = ranks = True


WITH_MODEL = replace(OFFER, sources=(Model(), *OFFER.sources))


def said(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["drafthouse"]["spec_decode"]


def told(live: Live) -> DecodeRequest:
    """The last request that the engine had."""
    request: DecodeRequest = live.runner.requests[-1]
    return request


@pytest.fixture(params=[{}])
def keyed(request: pytest.FixtureRequest) -> Iterator[tuple[Live, httpx.Client]]:
    """A server whose clients have keys, with further limits."""
    live = start(fake_state(api_keys=("one", "two"), limits=Limits(**request.param)))
    with httpx.Client(base_url=live.url, timeout=30, headers={"authorization": "Bearer one"}) as raw:
        yield live, raw
    live.stop()


# --- what is said


def test_auto_is_the_default_and_says_what_it_came_to(raw: httpx.Client, live: Live) -> None:
    found = said(post_chat(raw))
    assert found == said(post_chat(raw, spec_decode="auto")) == said(post_chat(raw, spec_decode=None))
    assert found | {"steps": 0} == {
        "draft": "suffix", "verifier": "match", "num_tokens": "auto", "num_drafts": 1, "sibling_law": "auto",
        "tree": {"shape": "chain"}, "draft_temperature": "same", "draft_noise": "independent", "draft_vocab": "full",
        "suffix": {"scope": "request", "factor": 1.0, "offset": 0, "min_prob": 0.1, "max_depth": 24},
        "stats": "summary", "steps": 0, "drafted": 0, "accepted": 0, "mean_emitted": 1.0, "lossy": False,
        "seed_stable": True,
    }  # fmt: skip
    assert isinstance(told(live).speculation, SpecRequest)


def test_false_is_plain(raw: httpx.Client, live: Live) -> None:
    assert said(post_chat(raw, spec_decode=False)) is False
    assert told(live).speculation is None


@pytest.mark.parametrize("value", [{}, {"stats": "detailed", "tree": {"max_nodes": 5}, "num_drafts": 2}])
def test_an_object_is_followed(raw: httpx.Client, live: Live, value: dict[str, Any]) -> None:
    found = said(post_chat(raw, spec_decode=value))
    spoken = told(live).speculation
    assert spoken is not None and spoken.report().items() <= found.items()


OBJECTS: list[dict[str, Any]] = [
    {},
    {"draft": "prompt_lookup", "ngram": {"min": 1, "max": 3, "pick": "first"}, "num_tokens": 5, "stats": "detailed"},
    {"draft": "suffix", "num_drafts": 3, "verifier": "traversal", "tree": {"shape": "static", "max_nodes": 9}},
    {"draft": "suffix", "tree": {"shape": "dynamic", "top_k": 2}, "stats": "none"},
    {"verifier": "kseq", "num_drafts": 4},
    {"verifier": "hu", "num_drafts": 2, "tree": {"depth": 1}},
    {"verifier": "block", "draft_temperature": 0.5},
    {"verifier": "match", "draft_noise": "shared"},
]


@pytest.mark.parametrize("value", ["auto", *OBJECTS])
def test_a_report_sent_back_means_itself(raw: httpx.Client, live: Live, value: Any) -> None:
    live.runner.offer = WITH_MODEL
    first = post_chat(raw, spec_decode=value, seed=None)
    once, plan = said(first), told(live).speculation
    assert said(post_chat(raw, spec_decode=once, seed=first.json()["drafthouse"]["seed"])) == once
    assert told(live).speculation == plan


def test_a_fallback_sent_back_falls_back_again(raw: httpx.Client, live: Live) -> None:
    live.runner.offer = replace(OFFER, sources=())
    once = said(post_chat(raw))
    assert once == said(post_chat(raw, spec_decode=once)) == {"fallback_reason": "draft_unavailable"}


def test_levels_of_statistics(raw: httpx.Client, live: Live) -> None:
    live.runner.behaviour.burst = 3
    fields = {"max_tokens": 7, "ignore_eos": True}
    none, summary, detailed = (
        said(post_chat(raw, spec_decode={"stats": level}, **fields)) for level in ("none", "summary", "detailed")
    )
    counts = {"steps": 3, "drafted": 6, "accepted": 4, "mean_emitted": 7 / 3}
    assert not none.keys() & counts.keys() and none["seed_stable"]
    assert summary == none | {"stats": "summary"} | counts
    more = {"acceptance_by_offset": [2 / 3, 2 / 3], "draft_lengths": {"2": 3}}
    assert detailed == summary | {"stats": "detailed"} | more


# --- what is counted

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("chat", {"n": 3}),
    ("chat", {"n": 4, "stop": ["e", "a"]}),
    ("chat", {"stop": ["e"], "stream": True}),
    ("chat", {"stop": ["e"], "stream": True, "stream_options": {"include_usage": True}, "n": 3}),
    ("completions", {"best_of": 4, "n": 2, "stop": ["e"]}),
    ("completions", {"prompt": ["a", "b c", "import"], "n": 2}),
    ("completions", {"echo": True, "logprobs": 0, "stream": True}),
    ("completions", {"prompt_boundary": "exact", "n": 4, "seed": 3, "stop": ["e"]}),
    ("chat", {"voting": {"samples": 6}}),
    ("chat", {"voting": {"samples": 6, "at_once": 2}, "stream": True}),
    (
        "chat",
        {"temperature": 0.01, "voting": {"samples": 12, "stop": {"rule": "esc", "window": 2}, "extract": "whole"}},
    ),
    ("chat", {"voting": {"rule": "deepconf", "params": {"warmup": 4, "mode": "online", "topk": 3}, "samples": 8}}),
]


@pytest.mark.parametrize(("path", "fields"), REQUESTS)
def test_the_report_is_what_the_engine_counted(raw: httpx.Client, live: Live, path: str, fields: Any) -> None:
    """Over all choices and samples: cut at stop strings, not shown, cancelled."""
    live.runner.behaviour.burst = 3
    response = (post_chat if path == "chat" else post_completion)(raw, spec_decode={"stats": "detailed"}, **fields)
    if fields.get("stream"):
        *earlier, last = data_lines(response)
        found = last["drafthouse"]["spec_decode"]
        assert not any("drafthouse" in chunk for chunk in earlier)
    else:
        found = said(response)
    ((_, counted),) = live.runner.speculation.items()
    assert counted.steps > 0
    expected = report(live.runner.requests[-1].speculation, counted)
    assert found == expected


def test_failed_choices_count_too(raw: httpx.Client, live: Live) -> None:
    live.runner.behaviour.errors = {0: (2, "internal_error")}
    found = said(post_chat(raw, n=2, ignore_eos=True, max_tokens=5))
    ((_, counted),) = live.runner.speculation.items()
    assert found["steps"] == counted.steps


def test_nothing_to_generate(raw: httpx.Client, live: Live) -> None:
    scoring = {"max_tokens": 0, "echo": True, "logprobs": 1}
    for value in (None, False, "auto", {"draft": "suffix"}):
        assert said(post_completion(raw, spec_decode=value, **scoring)) is False
        assert told(live).speculation is None
    refused(post_completion(raw, spec_decode={"draft": "draft_model"}, **scoring), "spec_decode.draft")


def test_questions_of_the_server_are_plain(raw: httpx.Client, live: Live) -> None:
    post_completion(raw, prompt_boundary="exact", prompt="def ma", tenant="x")
    asked = [request for request in live.runner.requests if "boundary" in request.id]
    assert asked and all(request.speculation is None for request in asked)
    assert told(live).speculation is not None
    live.runner.requests.clear()
    post_chat(raw, voting={"rule": "usc", "samples": 4})
    for request in live.runner.requests:
        assert (request.speculation is None) == ("judge" in request.id)


# --- what decides


def test_seeds_of_clients_and_of_the_server(raw: httpx.Client, live: Live) -> None:
    live.runner.offer = WITH_MODEL
    assert said(post_chat(raw, seed=None))["verifier"] == "block"
    assert said(post_chat(raw, seed=1))["verifier"] == "match"
    assert said(post_chat(raw, seed=None, temperature=0))["verifier"] == "match"
    unstable = said(post_chat(raw, spec_decode={"verifier": "block"}, seed=1))
    assert (unstable["verifier"], unstable["seed_stable"]) == ("block", False)


def test_programs_exclude_it(raw: httpx.Client, live: Live) -> None:
    error = refused(post_chat(raw, sampler="beam", n=2, spec_decode={}), "spec_decode", code=None)
    assert "one next token after the other" in error["message"]
    for value in ("auto", False):
        post_chat(raw, sampler="beam", n=2, spec_decode=value)
        assert told(live).speculation is None


def test_samplers_decide(raw: httpx.Client, live: Live) -> None:
    live.runner.offer = WITH_MODEL
    assert said(post_chat(raw, seed=None, sampler="arithmetic", n=2))["verifier"] == "match"
    refused(post_chat(raw, sampler="arithmetic", spec_decode={"verifier": "token"}), "spec_decode.verifier")


def test_traces(raw: httpx.Client, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.runners.base import Capability

    monkeypatch.setattr(live.runner, "capabilities", {*live.runner.capabilities, Capability.SAMPLER_TRACE})
    assert said(post_chat(raw, return_sampler_trace=True)) == {"fallback_reason": "return_sampler_trace"}
    error = refused(post_chat(raw, return_sampler_trace=True, spec_decode={}), "spec_decode", code=None)
    assert "return_sampler_trace" in error["message"]


def test_nothing_loaded(raw: httpx.Client, live: Live) -> None:
    live.runner.offer = replace(OFFER, sources=())
    assert said(post_chat(raw)) == {"fallback_reason": "draft_unavailable"}
    assert told(live).speculation is None
    refused(post_chat(raw, spec_decode={}), "spec_decode.draft", code="draft_unavailable")


REFUSED: list[tuple[Any, str, str | None]] = [
    (True, "spec_decode", None),
    ("on", "spec_decode", None),
    (1, "spec_decode", None),
    ({"drafts": 3}, "spec_decode.drafts", None),
    ({"draft": 3}, "spec_decode.draft", None),
    ({"draft": "ngram"}, "spec_decode.draft", None),
    ({"draft": "draft_model"}, "spec_decode.draft", "draft_unavailable"),
    ({"draft": "prediction"}, "spec_decode.draft", "draft_unavailable"),
    ({"verifier": "typical_acceptance"}, "spec_decode.verifier", None),
    ({"num_tokens": 33}, "spec_decode.num_tokens", None),
    ({"num_tokens": "4"}, "spec_decode.num_tokens", None),
    ({"num_tokens": True}, "spec_decode.num_tokens", None),
    ({"num_drafts": 9}, "spec_decode.num_drafts", None),
    ({"sibling_law": "hu"}, "spec_decode.sibling_law", None),
    ({"tree": {"nodes": 3}}, "spec_decode.tree.nodes", None),
    ({"tree": {"max_nodes": 65}}, "spec_decode.tree.max_nodes", None),
    ({"tree": "static"}, "spec_decode.tree", None),
    ({"draft_temperature": 6}, "spec_decode.draft_temperature", None),
    ({"draft": "suffix", "draft_temperature": 0.5}, "spec_decode.draft_temperature", None),
    ({"draft_noise": "shared", "verifier": "block"}, "spec_decode.draft_noise", None),
    ({"draft_vocab": "8k"}, "spec_decode.draft_vocab", None),
    ({"draft": "prompt_lookup", "ngram": {"min": 5, "max": 2}}, "spec_decode.ngram.min", None),
    ({"draft": "prompt_lookup", "suffix": {}}, "spec_decode.suffix", None),
    ({"suffix": {"scope": "tenant"}}, "spec_decode.suffix.scope", None),
    ({"suffix": {"scope": "everybody"}}, "spec_decode.suffix.scope", None),
    ({"lossy": True}, "spec_decode.lossy", None),
    ({"lossy": {"typical_acceptance": {"epsilon": 1}}}, "spec_decode.lossy.typical_acceptance.epsilon", None),
    ({"lossy": {"typical_acceptance": {}}, "verifier": "token"}, "spec_decode.lossy", None),
    ({"stats": "all"}, "spec_decode.stats", None),
    ({"verifier": "block", "num_drafts": 2}, "spec_decode.verifier", None),
    ({"verifier": "kseq", "tree": {"shape": "static"}}, "spec_decode.verifier", None),
]


@pytest.mark.parametrize(("value", "path", "code"), REFUSED)
def test_what_cannot_be_honoured_is_a_400(
    raw: httpx.Client, live: Live, value: Any, path: str, code: str | None
) -> None:
    for post in (post_chat, post_completion):
        refused(post(raw, spec_decode=value), path, code=code)
    refused(post_chat(raw, vllm_xargs={"spec_decode": value}, n=2), path, code=code)
    assert not live.runner.requests


def test_chains_only(raw: httpx.Client, live: Live) -> None:
    live.runner.offer = replace(WITH_MODEL, trees=False)
    code = "unsupported_by_runner"
    refused(post_chat(raw, spec_decode={"num_drafts": 2}), "spec_decode.num_drafts", code=code)
    refused(post_chat(raw, spec_decode={"tree": {"shape": "dynamic"}}), "spec_decode.tree.shape", code=code)


def test_lossy_says_so(raw: httpx.Client, live: Live) -> None:
    asked = {"lossy": {"typical_acceptance": {"epsilon": 0.2}}}
    found = said(post_chat(raw, spec_decode=asked))
    assert (found["lossy"], found["seed_stable"], found["verifier"]) == (True, False, "typical_acceptance")
    assert found["typical_acceptance"] == {"epsilon": 0.2, "alpha": 0.3}
    refused(post_chat(raw, spec_decode=found), code=None)  # it has to be asked for


@pytest.mark.parametrize("keyed", [{"require_lossless": True}], indirect=True)
def test_lossless_servers(keyed: tuple[Live, httpx.Client]) -> None:
    refused(post_chat(keyed[1], spec_decode={"lossy": {"typical_acceptance": {}}}), "spec_decode.lossy")
    assert said(post_chat(keyed[1], spec_decode={"lossy": None}))["lossy"] is False


# --- tenants

TENANT = {"suffix": {"scope": "tenant"}}


@pytest.mark.parametrize("keyed", [{"past_outputs": True}], indirect=True)
def test_past_outputs_belong_to_keys(keyed: tuple[Live, httpx.Client]) -> None:
    live, raw = keyed
    assert said(post_chat(raw, spec_decode=TENANT, user="two"))["suffix"]["scope"] == "tenant"
    first = told(live).tenant
    assert first and "one" not in first
    raw.post("/v1/votes", json={"model": MODEL, "prompt": PROMPT, "spec_decode": TENANT, "voting": {"samples": 3}})
    assert told(live).tenant == first and told(live).speculation is not None
    raw.headers["authorization"] = "Bearer two"
    post_completion(raw, spec_decode=TENANT, user="one", cache_salt=first)
    assert told(live).tenant not in (None, first)


@pytest.mark.parametrize("keyed", [{"past_outputs": True}], indirect=True)
def test_what_is_not_to_be_stored_has_no_tenant(keyed: tuple[Live, httpx.Client]) -> None:
    live, raw = keyed
    for store, whose in ((None, True), (True, True), (False, False)):
        assert post_chat(raw, store=store).status_code == 200
        assert (told(live).tenant is not None) == whose
    refused(post_chat(raw, store=False, spec_decode=TENANT), "spec_decode.suffix.scope")
    refused(post_chat(raw, store="no"), "store")


def test_past_outputs_are_off_unless_the_operator_says_so(keyed: tuple[Live, httpx.Client]) -> None:
    live, raw = keyed
    refused(post_chat(raw, spec_decode=TENANT), "spec_decode.suffix.scope")
    post_chat(raw)
    assert told(live).tenant is None


# --- presets


def test_a_request_replaces_the_presets_object_as_a_whole(live: Live, raw: httpx.Client) -> None:
    model = live.state.models[0]
    before = model.presets
    model.presets = {"fast": {"spec_decode": {"draft": "prompt_lookup", "num_tokens": 3}, "seed": 5}}
    try:
        name = f"{MODEL}@fast"
        assert said(post_chat(raw, model=name))["num_tokens"] == 3
        other = said(post_chat(raw, model=name, spec_decode={"verifier": "token"}))
        assert (other["draft"], other["num_tokens"], other["verifier"]) == ("suffix", "auto", "token")
        assert said(post_chat(raw, model=name, spec_decode=False)) is False
        assert said(post_chat(raw, model=name, spec_decode=None))["num_tokens"] == 3
    finally:
        model.presets = before


@pytest.mark.parametrize(
    "fields",
    [
        {"spec_decode": True},
        {"spec_decode": {"draft": "draft_model"}},
        {"spec_decode": {"num_tokens": 99}},
        {"spec_decode": TENANT},
        {"spec_decode": {}, "sampler": "beam"},
        {"spec_decode": {"verifier": "block"}, "sampler": "arithmetic"},
    ],
)
def test_presets_that_no_request_could_use(live: Live, fields: dict[str, Any]) -> None:
    model = live.state.models[0]
    with pytest.raises(PresetError, match="spec_decode"):
        check_presets_of(model, live.state, {"bad": fields})
    assert usable_presets(model, live.state, {"bad": fields, "good": {"spec_decode": {}}}).keys() == {"good"}


@pytest.mark.parametrize("keyed", [{"past_outputs": True}], indirect=True)
def test_presets_may_look_at_past_outputs_where_requests_may(keyed: tuple[Live, httpx.Client]) -> None:
    check_presets_of(keyed[0].state.models[0], keyed[0].state, {"mine": {"spec_decode": TENANT}})


# --- metrics


def samples(raw: httpx.Client, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Values of a metric by its labels."""
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(raw.get("/metrics").text)
        for sample in family.samples
        if sample.name == name
    }


def test_metrics(raw: httpx.Client, live: Live) -> None:
    live.runner.behaviour.burst = 3
    post_chat(raw, max_tokens=7, ignore_eos=True)
    labels = (("draft", "suffix"), ("model", MODEL), ("verifier", "match"))
    for name, value in (("steps", 3), ("drafted", 6), ("accepted", 4), ("emitted", 7), ("repaired", 0)):
        assert samples(raw, f"drafthouse_spec_{name}_total") == {labels: value}
    for name, values in (("reached", (3, 3)), ("passed", (2, 2))):
        found = samples(raw, f"drafthouse_spec_{name}_total")
        assert [found[tuple(sorted((*labels, ("position", str(at)))))] for at in (1, 2)] == list(values)
    lengths = samples(raw, "drafthouse_spec_draft_length_bucket")
    by_bound = {dict(key)["le"]: value for key, value in lengths.items()}
    assert (by_bound["1.0"], by_bound["2.0"], by_bound["+Inf"]) == (0, 3, 3)
    assert samples(raw, "drafthouse_spec_draft_length_sum") == {labels: 6}


def test_fallbacks_are_counted_by_reason(raw: httpx.Client, live: Live) -> None:
    def count(reason: str) -> float:
        return samples(raw, "drafthouse_spec_fallbacks_total").get((("reason", reason),), 0.0)

    before = count("sampler_incompatible")
    post_chat(raw, sampler="beam", n=2)
    post_chat(raw, spec_decode=False)
    refused(post_chat(raw, sampler="beam", n=2, max_tokens=10_000))
    assert count("sampler_incompatible") == before + 1


def test_a_report_of_nothing_is_finite(live: Live) -> None:
    assert report(SpecRequest((SourceUse("suffix"),), "match"), SpecStatistics())["mean_emitted"] == 0.0  # type: ignore[index]
