"""The `spec_decode` field: every default, range and combination, and what "auto" stands for."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.chain import resolve as resolve_chain
from samplers.contract import SamplerError
from spec_decode.contract import DRAFT_SOURCES, DraftPlan, DraftSource
from spec_decode.drafters import PromptLookup, Suffix
from spec_decode.drafters.source import BaseSource
from spec_decode.facts import SamplerClass, SpecError, SpecFacts, SpecOffer, sampler_class
from spec_decode.read import read_spec
from spec_decode.request import Plain, SpecRequest, depth_limit
from spec_decode.tree_forms import chain, sequences, static


class Model(BaseSource):
    """Stands for a draft model."""

    name = "draft_model"
    draws = True
    branches = True
    ranks = True


class Samples(Model):
    """Cannot name its most probable tokens."""

    name = "heads"
    ranks = False


SOURCES: tuple[DraftSource, ...] = (Model(), Suffix(), PromptLookup(), Samples())
FACTS = SpecFacts(SpecOffer(SOURCES, frozenset({"32k"})), past_outputs=True)


def offering(**changed: Any) -> SpecFacts:
    return replace(FACTS, offer=replace(FACTS.offer, **changed))


GREEDY, SEEDED = replace(FACTS, greedy=True), replace(FACTS, seeded=True)
OWN_DRAW, NO_CHOICE = replace(FACTS, sampler=SamplerClass.OWN_DRAW), replace(FACTS, sampler=SamplerClass.NONE)


def read(value: Any, facts: SpecFacts = FACTS) -> SpecRequest:
    found = read_spec(value, facts)
    assert isinstance(found, SpecRequest)
    return found


def refused(value: Any, facts: SpecFacts = FACTS) -> tuple[str | None, str | None]:
    """The path and the code."""
    with pytest.raises(SamplerError) as error:
        read_spec(value, facts)
    assert error.value.param is not None and error.value.param.rpartition(".")[0] in str(error.value)
    return error.value.param, getattr(error.value, "code", None)


# --- the field itself


def test_false_is_plain_and_says_nothing() -> None:
    assert read_spec(False, FACTS) == read_spec(False, NO_CHOICE) == Plain(None)


@pytest.mark.parametrize("value", [True, "on", "", 1, 0.5, [], ["auto"]])
def test_what_is_none_of_the_three_is_refused(value: Any) -> None:
    assert refused(value) == ("spec_decode", None)


def test_an_empty_object_takes_every_default() -> None:
    assert read({}).report() == {
        "draft": "auto",
        "verifier": "block",
        "num_tokens": "auto",
        "num_drafts": 1,
        "sibling_law": "auto",
        "tree": {"shape": "chain"},
        "draft_temperature": "same",
        "draft_noise": "independent",
        "draft_vocab": "full",
        "stats": "summary",
    }
    assert read({"draft": None, "tree": None, "num_tokens": None, "lossy": None}) == read({})
    assert read({"draft": "suffix"}).report()["suffix"] == {
        "scope": "request",
        "factor": 1.0,
        "offset": 0,
        "min_prob": 0.1,
        "max_depth": 24,
    }
    assert read({"draft": "prompt_lookup"}).report()["ngram"] == {"min": 2, "max": 5, "pick": "recent"}
    tree = read({"num_drafts": 2}).report()["tree"]
    assert tree == {"shape": "static", "max_nodes": 32, "depth": 6}
    assert read({"tree": {"shape": "dynamic"}}).report()["tree"] == tree | {"shape": "dynamic", "top_k": 8}


def names(value: dict[str, Any]) -> list[str]:
    return [one.name for one in read(value).sources]


def test_chains_of_any_length_come_from_whichever_source_pays() -> None:
    assert names({}) == names({"draft": "auto", "verifier": "token"}) == ["draft_model", "suffix"]
    assert names({"draft_temperature": 0, "draft_vocab": "32k"}) == ["draft_model", "suffix"]
    assert names({"draft": "draft_model"}) == ["draft_model"]
    assert names({"num_tokens": 3}) == ["draft_model"]  # as many as that costs something
    assert names({"num_drafts": 2}) == ["draft_model"]  # drafts of one position come from one source
    assert names({"suffix": {}}) == ["suffix"]
    for one in read({}).sources:
        assert one.options.keys() == {param.name for param in DRAFT_SOURCES.get(one.name).params}


RANGES: list[tuple[str, Any, list[Any], list[Any]]] = [
    # path, object around the value, good ones, bad ones
    ("num_tokens", {}, ["auto", 1, 32], [0, 33, 1.5, True, "many", [], -1]),
    ("num_drafts", {}, [1, 8], [0, 9, 2.5, "auto", False]),
    ("draft", {}, ["auto", "suffix"], ["ngram", 1, "", True]),
    ("verifier", {}, ["auto", "match", "token", "block", "rrs", "hu", "traversal", "kseq"], ["typical", 1, "any"]),
    ("sibling_law", {"num_drafts": 2}, ["auto", "iid", "swor", "topk", "hu"], ["none", 0]),
    ("draft_noise", {"verifier": "match"}, ["auto", "independent", "shared"], ["own", True]),
    ("draft_temperature", {}, ["same", 0, 5, 0.7], [-0.1, 5.1, "hot", True, float("nan")]),
    ("draft_vocab", {}, ["full", "32k"], ["8k", 32, ""]),
    ("stats", {}, ["none", "summary", "detailed"], ["all", False]),
    ("tree.shape", {}, ["chain", "sequences", "static", "dynamic"], ["star", 1]),
    ("tree.max_nodes", {"tree": {"shape": "static"}}, [1, 64], [0, 65, "all"]),
    ("tree.depth", {"tree": {"shape": "static"}}, [1, 16], [0, 17, 1.5]),
    ("tree.top_k", {"tree": {"shape": "dynamic"}}, [1, 16], [0, 17, "all"]),
    ("ngram.min", {"draft": "prompt_lookup", "ngram": {"max": 16}}, [1, 8], [0, 9]),
    ("ngram.max", {"draft": "prompt_lookup", "ngram": {"min": 1}}, [1, 16], [0, 17]),
    ("ngram.pick", {"draft": "prompt_lookup"}, ["recent", "first"], ["last", 1]),
    ("suffix.scope", {"draft": "suffix"}, ["request", "tenant"], ["server", 1]),
    ("suffix.factor", {"draft": "suffix"}, [0.1, 8], [0.09, 8.1, "x"]),
    ("suffix.offset", {"draft": "suffix"}, [-4, 16], [-5, 17]),
    ("suffix.min_prob", {"draft": "suffix"}, [0, 1], [-0.1, 1.1]),
    ("suffix.max_depth", {"draft": "suffix"}, [4, 128], [3, 129, 4.5]),
    ("lossy.typical_acceptance.epsilon", {}, [0.01, 0.99], [0, 1, "x"]),
    ("lossy.typical_acceptance.alpha", {}, [0.01, 1], [0, 1.1]),
]


def put(around: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    return {**around, name: put(around.get(name, {}), rest, value) if rest else value}


@pytest.mark.parametrize(("path", "around", "good", "bad"), RANGES, ids=lambda one: one if type(one) is str else "")
def test_ranges(path: str, around: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    for value in good:
        read(put(around, path, value))
    for value in bad:
        assert refused(put(around, path, value)) == (f"spec_decode.{path}", None)


@pytest.mark.parametrize(
    "path", ["drafts", "tree.width", "ngram.low", "suffix.x", "lossy.x", "lossy.typical_acceptance.x"]
)
def test_unknown_keys_are_refused(path: str) -> None:
    around = {"draft": "prompt_lookup"} if path.startswith("ngram") else {"draft": "suffix"}
    assert refused(put(around, path, 1)) == (f"spec_decode.{path}", None)


@pytest.mark.parametrize("name", ["tree", "ngram", "suffix", "lossy"])
def test_objects_must_be_objects(name: str) -> None:
    draft = {"ngram": "prompt_lookup"}.get(name, "suffix")
    wrong: list[Any] = ["x", 1, [], True]
    for value in wrong:
        assert refused({"draft": draft, name: value}) == (f"spec_decode.{name}", None)


def test_a_lossy_mode_names_its_rule() -> None:
    assert refused({"lossy": {}}) == ("spec_decode.lossy", None)
    found = read({"lossy": {"typical_acceptance": {}}})
    assert (found.verifier, dict(found.verifier_values)) == ("typical_acceptance", {"epsilon": 0.09, "alpha": 0.3})
    assert not found.lossless and not found.seed_stable
    assert read({"lossy": {"typical_acceptance": {"alpha": 0.5}}}, SEEDED).verifier == "typical_acceptance"
    assert read({"lossy": {"typical_acceptance": {}}}, GREEDY).lossless  # exact greedy matching
    assert read({}).lossless


# --- combinations

TREE, SEQUENCES = {"shape": "static"}, {"shape": "sequences"}
COMBINATIONS: list[tuple[dict[str, Any], SpecFacts, str, str | None]] = [
    ({"verifier": "token", "tree": TREE}, FACTS, "verifier", None),
    ({"verifier": "block", "tree": SEQUENCES}, FACTS, "verifier", None),
    ({"verifier": "token", "num_drafts": 2}, FACTS, "verifier", None),
    ({"verifier": "block", "num_drafts": 2}, GREEDY, "verifier", None),
    ({"verifier": "block", "tree": {"shape": "dynamic"}}, FACTS, "verifier", None),
    ({"verifier": "kseq", "num_drafts": 2, "sibling_law": "hu"}, FACTS, "sibling_law", None),
    ({"verifier": "kseq", "num_drafts": 2, "sibling_law": "swor"}, FACTS, "sibling_law", None),
    ({"verifier": "kseq", "num_drafts": 2, "tree": TREE}, FACTS, "verifier", None),
    ({"verifier": "kseq", "tree": {"shape": "chain"}}, FACTS, "verifier", None),
    ({"verifier": "hu", "num_drafts": 2, "sibling_law": "iid"}, FACTS, "sibling_law", None),
    ({"verifier": "hu", "num_drafts": 2, "sibling_law": "topk"}, FACTS, "sibling_law", None),
    ({"verifier": "hu", "num_drafts": 2, "draft": "heads"}, FACTS, "sibling_law", None),
    ({"verifier": "hu", "num_drafts": 2, "draft": "suffix"}, FACTS, "verifier", None),
    ({"verifier": "kseq", "num_drafts": 2, "draft_temperature": 0}, FACTS, "verifier", None),
    ({"num_drafts": 2, "sibling_law": "hu", "draft": "heads"}, FACTS, "sibling_law", None),
    ({"num_drafts": 2, "sibling_law": "topk", "draft": "heads"}, FACTS, "sibling_law", None),
    ({"num_drafts": 2, "draft": "heads"}, GREEDY, "sibling_law", None),
    ({"num_drafts": 2, "draft": "heads", "draft_temperature": 0}, FACTS, "sibling_law", None),
    ({"sibling_law": "iid"}, FACTS, "sibling_law", None),
    ({"sibling_law": "topk", "tree": {"shape": "dynamic", "top_k": 1}}, FACTS, "sibling_law", None),
    ({"num_drafts": 2, "sibling_law": "iid", "draft": "suffix"}, FACTS, "sibling_law", None),
    ({"num_drafts": 2, "sibling_law": "swor", "draft_temperature": 0}, FACTS, "sibling_law", None),
    ({"num_drafts": 2, "tree": {"shape": "chain"}}, FACTS, "tree.shape", None),
    ({"num_drafts": 2, "tree": {"shape": "dynamic"}}, FACTS, "num_drafts", None),
    ({"tree": {"depth": 3}}, FACTS, "tree.depth", None),
    ({"tree": {"shape": "chain", "max_nodes": 3}}, FACTS, "tree.max_nodes", None),
    ({"tree": {"shape": "static", "top_k": 3}}, FACTS, "tree.top_k", None),
    ({"num_drafts": 2, "draft": "prompt_lookup"}, FACTS, "num_drafts", None),
    ({"tree": {"shape": "dynamic"}, "draft": "prompt_lookup"}, FACTS, "tree.shape", None),
    ({"ngram": {}, "draft": "suffix"}, FACTS, "ngram", None),
    ({"suffix": {}, "draft": "draft_model"}, FACTS, "suffix", None),
    ({"suffix": {}, "ngram": {}}, FACTS, "ngram", None),
    ({"ngram": {"min": 3, "max": 2}}, FACTS, "ngram.min", None),
    ({"suffix": {"scope": "tenant"}}, replace(FACTS, past_outputs=False), "suffix.scope", None),
    ({"draft_noise": "shared", "verifier": "token"}, FACTS, "draft_noise", None),
    ({"draft_noise": "shared", "verifier": "token"}, SEEDED, "draft_noise", None),
    ({"draft_noise": "shared", "verifier": "token"}, GREEDY, "draft_noise", None),
    ({"draft_noise": "shared"}, FACTS, "draft_noise", None),  # auto is block
    ({"draft_noise": "shared", "lossy": {"typical_acceptance": {}}}, FACTS, "draft_noise", None),
    ({"draft_noise": "shared", "draft": "suffix"}, FACTS, "draft_noise", None),
    ({"draft_noise": "shared", "draft_temperature": 0}, FACTS, "draft_noise", None),
    ({"draft_temperature": 1, "draft": "suffix"}, FACTS, "draft_temperature", None),
    ({"draft_vocab": "32k", "draft": "suffix"}, FACTS, "draft_vocab", None),
    ({"lossy": {"typical_acceptance": {}}, "verifier": "match"}, FACTS, "lossy", None),
    ({"lossy": {"typical_acceptance": {}}}, replace(FACTS, require_lossless=True), "lossy", None),
    ({"lossy": {"typical_acceptance": {}}}, OWN_DRAW, "lossy", None),
    *(
        ({"verifier": rule}, OWN_DRAW, "verifier", None)
        for rule in ("token", "block", "rrs", "kseq", "hu", "traversal")
    ),
    ({"draft": "lattice"}, FACTS, "draft", "draft_unavailable"),
    ({"draft": "draft_model"}, offering(sources=[Suffix()]), "draft", "draft_unavailable"),
    ({}, offering(sources=()), "draft", "draft_unavailable"),
    ({"num_drafts": 2}, offering(trees=False), "num_drafts", "unsupported_by_runner"),
    ({"tree": TREE}, offering(trees=False), "tree.shape", "unsupported_by_runner"),
    ({"verifier": "kseq"}, offering(trees=False), "verifier", "unsupported_by_runner"),
]


@pytest.mark.parametrize(("value", "facts", "field", "code"), COMBINATIONS)
def test_combinations_that_are_refused(value: dict[str, Any], facts: SpecFacts, field: str, code: str | None) -> None:
    assert refused(value, facts) == (f"spec_decode.{field}", code)


def test_samplers_without_next_tokens_refuse_objects_and_auto_falls_back() -> None:
    assert refused({}, NO_CHOICE) == ("spec_decode", None)
    for value in ("auto", None):
        assert read_spec(value, NO_CHOICE) == Plain("sampler_incompatible")
        assert read_spec(value, offering(sources=())) == Plain("draft_unavailable")
        assert read_spec(value, FACTS) == read_spec({}, FACTS)


def test_samplers_are_classed_by_their_chain() -> None:
    classes = {
        "iid": SamplerClass.ROWS,
        "gumbel": SamplerClass.ROWS,
        "arithmetic": SamplerClass.OWN_DRAW,
        "mirostat": SamplerClass.ROWS,
        "priority": SamplerClass.NONE,
    }
    for name, expected in classes.items():
        assert sampler_class(resolve_chain({"sampler": name}, 10)) is expected
    greedy = resolve_chain({"draw": "arithmetic", "temperature": 0}, 10)
    assert sampler_class(greedy) is SamplerClass.ROWS  # nothing is drawn


# --- what "auto" stands for (4.8)

SEVERAL = {"num_drafts": 4}
POLICY: list[tuple[dict[str, Any], SpecFacts, str, str, str]] = [
    # object, facts, rule, law of siblings, noise
    ({}, FACTS, "block", "auto", "independent"),
    ({}, GREEDY, "match", "auto", "independent"),
    ({}, SEEDED, "match", "auto", "shared"),
    ({}, OWN_DRAW, "match", "auto", "shared"),
    ({"draft_noise": "independent"}, SEEDED, "match", "auto", "independent"),
    ({"verifier": "match"}, FACTS, "match", "auto", "shared"),
    ({"verifier": "match", "draft_temperature": 0}, FACTS, "match", "auto", "independent"),
    ({"verifier": "block"}, SEEDED, "block", "auto", "independent"),
    ({"verifier": "block"}, GREEDY, "match", "auto", "independent"),
    ({"draft_temperature": 0}, FACTS, "match", "auto", "independent"),
    ({"draft_temperature": 1}, GREEDY, "match", "auto", "shared"),
    ({"draft": "suffix"}, FACTS, "match", "auto", "independent"),
    ({"draft": "prompt_lookup"}, SEEDED, "match", "auto", "independent"),
    ({"draft": "suffix", "verifier": "block"}, FACTS, "block", "auto", "independent"),
    (SEVERAL, FACTS, "traversal", "hu", "independent"),
    (SEVERAL, SEEDED, "match", "hu", "shared"),
    (SEVERAL, GREEDY, "match", "topk", "independent"),
    (SEVERAL | {"draft": "heads"}, FACTS, "traversal", "swor", "independent"),
    (SEVERAL | {"draft": "suffix"}, FACTS, "match", "topk", "independent"),
    (SEVERAL | {"sibling_law": "topk"}, FACTS, "match", "topk", "shared"),
    (SEVERAL | {"sibling_law": "iid"}, FACTS, "traversal", "iid", "independent"),
    (SEVERAL | {"sibling_law": "swor"}, FACTS, "traversal", "swor", "independent"),
    (SEVERAL | {"num_tokens": 1}, FACTS, "hu", "hu", "independent"),
    (SEVERAL | {"tree": {"depth": 1}}, FACTS, "hu", "hu", "independent"),
    (SEVERAL, offering(max_depth=1), "hu", "hu", "independent"),
    (SEVERAL | {"num_tokens": 1, "sibling_law": "swor"}, FACTS, "traversal", "swor", "independent"),
    (SEVERAL | {"tree": SEQUENCES}, FACTS, "kseq", "iid", "independent"),
    (SEVERAL | {"tree": SEQUENCES, "sibling_law": "iid"}, FACTS, "kseq", "iid", "independent"),
    (SEVERAL | {"tree": SEQUENCES, "sibling_law": "hu"}, FACTS, "traversal", "hu", "independent"),
    (SEVERAL | {"tree": SEQUENCES}, SEEDED, "match", "hu", "shared"),
    (SEVERAL | {"verifier": "kseq"}, FACTS, "kseq", "iid", "independent"),
    (SEVERAL | {"verifier": "kseq"}, GREEDY, "match", "topk", "independent"),
    (SEVERAL | {"verifier": "rrs"}, FACTS, "rrs", "hu", "independent"),
    (SEVERAL | {"verifier": "rrs", "sibling_law": "swor"}, SEEDED, "rrs", "swor", "independent"),
    (SEVERAL | {"verifier": "hu"}, FACTS, "hu", "hu", "independent"),
    ({"tree": {"shape": "dynamic"}}, FACTS, "traversal", "hu", "independent"),
    ({"tree": {"shape": "dynamic", "top_k": 1}}, FACTS, "traversal", "auto", "independent"),  # on a chain it is block
    ({"tree": {"shape": "static"}}, FACTS, "traversal", "auto", "independent"),
    ({"verifier": "kseq"}, FACTS, "kseq", "auto", "independent"),
    (SEVERAL | {"lossy": {"typical_acceptance": {}}}, FACTS, "typical_acceptance", "hu", "independent"),
    (
        SEVERAL | {"lossy": {"typical_acceptance": {}}, "tree": SEQUENCES},
        FACTS,
        "typical_acceptance",
        "hu",
        "independent",
    ),
]


@pytest.mark.parametrize(("value", "facts", "rule", "law", "noise"), POLICY)
def test_the_policy(value: dict[str, Any], facts: SpecFacts, rule: str, law: str, noise: str) -> None:
    found = read(value, facts)
    assert (found.verifier, found.sibling_law, found.draft_noise) == (rule, law, noise)
    assert found.seed_stable == (rule == "match")


def test_the_first_source_that_fits_is_taken() -> None:
    assert read({"ngram": {}}).draft == "prompt_lookup" and read({"suffix": {}}).draft == "suffix"
    lookup = offering(sources=(PromptLookup(), Suffix()))
    assert read({}, lookup).draft == "prompt_lookup" and read({"num_drafts": 2}, lookup).draft == "suffix"


options: dict[str, list[Any]] = {
    "draft": ["auto", "draft_model", "suffix", "prompt_lookup", "heads"],
    "verifier": ["auto", "match", "token", "block", "rrs", "kseq", "hu", "traversal"],
    "num_tokens": ["auto", 1, 5],
    "num_drafts": [1, 1, 2, 8],
    "sibling_law": ["auto", "auto", "iid", "swor", "topk", "hu"],
    "tree": [
        {},
        {"shape": "chain"},
        {"shape": "sequences", "depth": 2},
        {"shape": "static"},
        {"shape": "dynamic", "top_k": 2},
    ],
    "draft_temperature": ["same", "same", 0, 1.5],
    "draft_noise": ["auto", "auto", "independent", "shared"],
    "draft_vocab": ["full", "full", "32k"],
    "suffix": [{"factor": 2.0}],
    "ngram": [{"min": 1}],
    "stats": ["none", "detailed"],
}
objects = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in options.items()})
facts = st.builds(
    SpecFacts,
    st.builds(SpecOffer, st.just(SOURCES), st.just(frozenset({"32k"})), max_depth=st.sampled_from([1, 16])),
    greedy=st.booleans(),
    seeded=st.booleans(),
    sampler=st.sampled_from([SamplerClass.ROWS, SamplerClass.OWN_DRAW]),
)
CHAIN_RULES = {"token", "block"}


@settings(max_examples=400, deadline=None)
@given(objects, facts)
def test_whatever_is_accepted_is_sound_and_can_be_sent_back(value: dict[str, Any], facts: SpecFacts) -> None:
    try:
        found = read(value, facts)
    except SamplerError as error:
        assert error.param is not None and error.param.startswith("spec_decode.")
        return
    assert read(found.report(), facts) == found
    source = next(one for one in SOURCES if one.name == found.sources[0].name)
    assert (len(found.sources) > 1) == (found.draft == "auto")
    temperature = float(not facts.greedy) if found.draft_temperature is None else found.draft_temperature
    drawn = source.draws and temperature > 0
    several = found.num_drafts > 1 or (found.tree.shape == "dynamic" and found.tree.top_k > 1)
    assert found.lossless
    for name in ("verifier", "sibling_law", "draft_noise", "draft"):
        if value.get(name, "auto") != "auto" and not facts.greedy:
            assert getattr(found, name) == value[name]
    if facts.greedy or facts.sampler is SamplerClass.OWN_DRAW or (facts.seeded and "verifier" not in value):
        assert found.verifier == "match"
    assert (found.sibling_law == "auto") == (not several)
    if several:
        assert source.branches and found.verifier not in CHAIN_RULES and found.tree.shape != "chain"
        assert drawn or found.sibling_law == "topk"
    if found.verifier == "kseq":
        assert found.tree.shape == "sequences" and found.sibling_law in ("iid", "auto")
    if found.verifier == "hu" and several:
        assert found.sibling_law == "hu"
    if found.draft_noise == "shared":
        assert drawn and found.verifier == "match"
    plan = found.plan(facts.offer.max_depth)
    assert plan.max_depth <= min(facts.offer.max_depth, found.num_tokens or 99)
    assert plan.form is None or len(plan.form) <= plan.max_nodes


# --- plans


def test_plans() -> None:
    assert read({}).plan(5) == DraftPlan(5, 5, chain(5))
    assert read({"num_tokens": 3}).plan(5) == read({"num_tokens": 8}).plan(3) == DraftPlan(3, 3, chain(3))
    tree = {"num_drafts": 4, "tree": {"max_nodes": 20}}
    assert read(tree).plan(3) == DraftPlan(20, 3, static((4, 2, 1), 20))
    assert read(tree | {"num_tokens": 2}).plan(16) == DraftPlan(20, 2, static((4, 2), 20))
    assert read(tree).plan(16).max_depth == 6
    many = read({"verifier": "kseq", "num_drafts": 8, "tree": {"depth": 4, "max_nodes": 30}})
    assert many.plan(16) == DraftPlan(30, 4, sequences(8, 4)[:30])
    assert read({"tree": {"shape": "dynamic", "top_k": 3}}).plan(9) == DraftPlan(32, 6, None, 3)
    plain: list[dict[str, Any]] = [{}, tree, {"verifier": "kseq"}]
    assert [read(value).plan(0).form for value in plain] == [()] * 3


def test_a_draft_leaves_room_for_the_token_behind_it() -> None:
    rooms = [depth_limit(*room) for room in itertools.product((0, 1, 5, 99), (0, 1, 4, 99), (3, 16))]
    expected = [
        max(0, min(tokens - 1, context - 1, most))
        for tokens, context, most in itertools.product((0, 1, 5, 99), (0, 1, 4, 99), (3, 16))
    ]
    assert rooms == expected
    assert depth_limit(1, 100, 16) == 0 and depth_limit(5, 100, 16) == 4 and depth_limit(100, 3, 16) == 2


def test_errors_carry_their_code() -> None:
    with pytest.raises(SpecError) as error:
        read_spec({"draft": "corpus"}, FACTS)
    assert "corpus is not loaded" in str(error.value) and "suffix" in str(error.value)
