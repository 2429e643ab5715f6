"""`spec_decode` over an engine that speculates for all requests in one way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from samplers.contract import SamplerError
from spec_decode.engine_wide import EngineWide
from spec_decode.facts import SamplerClass, SpecError, SpecFacts, SpecOffer
from spec_decode.read import read_spec
from spec_decode.request import SourceUse, SpecRequest

LOOKUP = EngineWide(SourceUse("prompt_lookup", {"min": 2, "max": 4, "pick": "first"}, "ngram"), 3, "token")
HEADS = EngineWide(SourceUse("heads"), None, "block", draft_temperature=0.0)
FACTS = SpecFacts(SpecOffer(max_depth=16, trees=False, engine_wide=LOOKUP), follows_seed=False)


def read(value: Any, facts: SpecFacts = FACTS) -> SpecRequest:
    found = read_spec(value, facts)
    assert isinstance(found, SpecRequest)
    return found


@pytest.mark.parametrize("value", [None, "auto", {}, {"draft": "auto", "num_tokens": "auto", "lossy": None}])
def test_what_is_left_open_is_what_the_engine_does(value: Any) -> None:
    found = read(value)
    assert (found.draft, found.verifier, found.num_tokens) == ("prompt_lookup", "token", 3)
    assert found.report()["ngram"] == {"min": 2, "max": 4, "pick": "first"}


@pytest.mark.parametrize("facts", [{"greedy": True}, {"follows_seed": True}])
def test_tokens_that_follow_a_seed_are_matched(facts: dict[str, Any]) -> None:
    found = read(None, replace(FACTS, **facts))
    assert found.verifier == "match" and found.seed_stable


@pytest.mark.parametrize("own", [LOOKUP, HEADS])
@pytest.mark.parametrize("greedy", [False, True])
def test_what_is_reported_may_be_sent_back(own: EngineWide, greedy: bool) -> None:
    facts = replace(FACTS, offer=replace(FACTS.offer, engine_wide=own), greedy=greedy)
    found = read({"stats": "detailed"}, facts)
    assert found.stats == "detailed"
    assert read(found.report(), facts) == found


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (False, "spec_decode"),
        ({"draft": "suffix"}, "spec_decode.draft"),
        ({"verifier": "match"}, "spec_decode.verifier"),
        ({"num_tokens": 4}, "spec_decode.num_tokens"),
        ({"num_drafts": 2}, "spec_decode.num_drafts"),
        ({"tree": {"shape": "static"}}, "spec_decode.tree.shape"),
        ({"tree": {"depth": 3}}, "spec_decode.tree.depth"),
        ({"ngram": {"min": 2, "pick": "recent"}}, "spec_decode.ngram.pick"),
        ({"draft_temperature": 0.5}, "spec_decode.draft_temperature"),
        ({"draft_vocab": "1k"}, "spec_decode.draft_vocab"),
        ({"lossy": {"typical_acceptance": {}}}, "spec_decode.lossy"),
    ],
)
def test_anything_else_is_for_another_runner(value: Any, param: str) -> None:
    with pytest.raises(SpecError, match="the torch runner lets each decide") as caught:
        read_spec(value, FACTS)
    assert (caught.value.param, caught.value.code) == (param, "unsupported_by_runner")


@pytest.mark.parametrize("value", [True, 0, "yes", {"no_such": 1}, {"num_tokens": 99}, {"suffix": {}}])
def test_what_means_nothing_is_an_error_anywhere(value: Any) -> None:
    with pytest.raises(SamplerError) as caught:
        read_spec(value, FACTS)
    assert getattr(caught.value, "code", None) is None


def test_nobody_adds_up_the_drafts_of_programs() -> None:
    assert read(None, replace(FACTS, sampler=SamplerClass.NONE)).stats == "none"
