"""The field `voting` as it is read: defaults, the way back from a report, and what no value can do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.contract import SamplerError
from server.votes.request import read_vote
from voting.contract import VOTING_RULES
from voting.stopping.contract import STOPPING_RULES

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
RULES = sorted(rule.name for rule in VOTING_RULES)
STOPS = sorted(rule.name for rule in STOPPING_RULES)
FIELDS = [
    "rule", "samples", "extract", "equiv", "stop", "params", "on_truncated", "guard_repetition", "use_sample_weights",
    "return_samples", "reallocate", "at_once", "clusters", "answer",
]  # fmt: skip


def valid(draw: st.DrawFn, param: Any) -> Any:
    """A value in a parameter's range."""
    if param.kind is bool:
        return draw(st.booleans())
    if param.choices:
        return draw(st.sampled_from(param.choices))
    if param.kind is int:
        return draw(st.integers(int(param.low), int(min(param.high, param.low + 40))))
    return draw(
        st.floats(param.low, param.high, exclude_min=param.low_open, exclude_max=param.high_open, allow_subnormal=False)
    )


@st.composite
def votes(draw: st.DrawFn) -> dict[str, Any]:
    """Requests that are fine as far as single fields go."""
    rule, stop = VOTING_RULES.get(draw(st.sampled_from(RULES))), STOPPING_RULES.get(draw(st.sampled_from(STOPS)))
    params = {param.name: valid(draw, param) for param in rule.params if draw(st.booleans())}
    if rule.name == "bon":
        params["scorer"] = "likelihood"
    vote: dict[str, Any] = {
        "rule": rule.name,
        "params": params,
        "stop": {"rule": stop.name} | {param.name: valid(draw, param) for param in stop.params if draw(st.booleans())},
        "extract": draw(
            st.sampled_from(["auto", "boxed", "whole", {"regex": "a(b)", "group": 1}, {"json_path": "$.x"}])
        ),
        "equiv": draw(st.sampled_from(["exact", "string", {"name": "exact", "percent": "unit"}])),
    }
    for name in ("guard_repetition", "use_sample_weights", "return_samples", "reallocate"):
        if draw(st.booleans()):
            vote[name] = draw(st.booleans() | st.none())
    if draw(st.booleans()):
        vote["samples"] = draw(st.integers(1, 512))
    return vote


@given(votes())
@settings(max_examples=150, deadline=None)
def test_a_report_asks_for_the_same_vote(asked: dict[str, Any]) -> None:
    try:
        vote = read_vote(asked, 512)
    except SamplerError as error:  # about fields that exclude each other
        assert (error.param or "").startswith("voting.params.")
        return
    said = json.loads(json.dumps(vote.report(), allow_nan=False))
    again = read_vote(said | {"clusters": [], "answer": "4", "sample_records": [], "cert": None}, 512)
    assert again.report() == said and (again.values, again.stop) == (vote.values, vote.stop)
    assert 1 <= vote.samples <= 512
    assert vote.top is None or 2 <= vote.top <= 100
    for name, value in asked.items():
        if name not in ("stop", "params") and value is not None:
            assert said[name] == value
    assert said["params"] | asked["params"] == said["params"] and said["stop"] | asked["stop"] == said["stop"]


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), JSON, max_size=4))
@settings(max_examples=300, deadline=None)
def test_anything_is_a_vote_or_an_error_that_names_its_place(value: dict[str, Any]) -> None:
    try:
        vote = read_vote(value, 64)
    except SamplerError as error:
        assert error.param is not None and error.param.startswith("voting.") and str(error)
    else:
        assert 1 <= vote.samples <= 64
        json.dumps(vote.report(), allow_nan=False)


@given(st.sampled_from(RULES), st.dictionaries(st.text(max_size=8), JSON, min_size=1, max_size=2))
@settings(max_examples=100, deadline=None)
def test_unknown_parameters_are_named(rule: str, params: dict[str, Any]) -> None:
    known = {param.name for param in VOTING_RULES.get(rule).params} | set(VOTING_RULES.get(rule).structured)
    if known & params.keys():
        return
    with pytest.raises(SamplerError) as caught:
        read_vote({"rule": rule, "params": params}, 512)
    assert caught.value.param in {f"voting.params.{name}" for name in params}


def test_defaults() -> None:
    vote = read_vote({}, 512)
    assert (vote.rule.name, vote.samples, vote.stop.rule.name, vote.top) == ("sc", 16, "none", None)
    assert read_vote({name: None for name in FIELDS}, 512) == vote
    assert read_vote({"stop": "beta"}, 512).samples == 40
    assert read_vote({"rule": "usc"}, 512).samples == 8
    assert read_vote({"rule": "usc", "stop": "esc"}, 30).samples == 30
    assert read_vote({}, 4).samples == 4
    assert (read_vote({"rule": "iew", "params": {"topk": 7}}, 512).top, read_vote({"rule": "deepconf"}, 512).top) == (
        7,
        20,
    )
    assert read_vote({"stop": {"rule": "mode_cert", "weighted": True}}, 512).needs == {"logprobs"}


def test_a_path_of_ones_own() -> None:
    with pytest.raises(SamplerError) as caught:
        read_vote({"stop": {"rule": "beta", "every": 0}}, 512, "arms[3].voting")
    assert caught.value.param == "arms[3].voting.stop.every"
