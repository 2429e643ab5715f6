"""Resolution of sampling fields: order, defaults, conflicts, and errors that name the field."""

from __future__ import annotations

from typing import Any

import pytest

from samplers.chain import MAX_ITEMS, resolve
from samplers.contract import SamplerError

VOCABULARY = 100
DRY = {"dry_multiplier": 0.5, "dry_sequence_breakers": []}


def names(**fields: Any) -> list[str]:
    return [item.name for item in resolve(fields, VOCABULARY).stages]


def test_nothing_asked_is_a_plain_draw() -> None:
    neutral = {"temperature": 1, "top_k": -1, "top_p": 1.0}
    for fields in ({}, {"sampler": []}, {"sampler": None, "top_p": None}, neutral):
        chain = resolve(fields, VOCABULARY)
        assert chain.stages == () and chain.draw.name == "iid" and not chain.greedy


def test_stages_run_in_the_documented_order() -> None:
    fields = {"min_p": 0.1, "top_k": 5, "temperature": 0.5, "logit_bias": {"3": 1}, "presence_penalty": 1, "top_p": 0.9}
    assert names(**fields) == ["logit_bias", "presence_penalty", "temperature", "top_k", "top_p", "min_p"]
    assert names(sampler=["min_p", "top_k"], temperature=0.5) == ["temperature", "top_k", "min_p"]
    assert names(sampler=["min_p", "top_k"], sampler_order="given") == ["min_p", "top_k"]
    listed = ["min_p", {"name": "temperature", "temperature": 2.0}, "top_k"]
    assert names(sampler=listed, sampler_order="given", top_p=0.5) == ["top_p", "min_p", "temperature", "top_k"]
    assert names(temperature=0.5, top_k=5, temperature_last=True) == ["top_k", "temperature"]


@pytest.mark.parametrize(
    ("listed", "flat", "order"),
    [
        (["typical", "repetition_penalty"], {"frequency_penalty": 1}, "frequency_penalty typical repetition_penalty"),
        (["typical", "bias"], {**DRY, "temperature": 0.5}, "dry temperature typical bias"),
        (["bias", "typical"], {"temperature": 0.5}, "bias temperature typical"),  # as in the fixed order
        (["repetition_penalty", "top_k"], {"frequency_penalty": 1}, "frequency_penalty repetition_penalty top_k"),
        (["top_k", "bias"], {"temperature": 0.5, "min_p": 0.1}, "temperature top_k bias min_p"),
        (["top_k", "xtc"], {"temperature": 0.5, "temperature_last": True, "top_p": 0.5}, "top_k top_p xtc temperature"),
    ],
)
def test_what_is_not_listed_runs_at_its_usual_place(listed: list[str], flat: dict[str, Any], order: str) -> None:
    bias = {"name": "logit_bias", "logit_bias": {"1": 1}}
    sampler = [bias if name == "bias" else name for name in listed]
    ran = names(sampler=sampler, sampler_order="given", **flat)
    assert ran == [name if name != "bias" else "logit_bias" for name in order.split()]


def test_string_object_and_list_are_the_same() -> None:
    chains = [
        resolve({"sampler": spelling}, VOCABULARY)
        for spelling in ("top_p", {"name": "top_p"}, ["top_p"], [{"name": "top_p", "top_p": 0.9}])
    ]
    assert all(chain == chains[0] for chain in chains)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0},
        {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.2, "logit_bias": {"7": -3}},
        {"sampler": ["gumbel", "top_k"], "temperature": 1.5},
        {"temperature": 0, "frequency_penalty": 1, "top_p": 0.5},
        {"allowed_token_ids": [1, 2, 3]},
    ],
)
def test_a_report_sent_back_resolves_to_the_same_chain(fields: dict[str, Any]) -> None:
    chain = resolve(fields, VOCABULARY)
    again = resolve({"sampler": chain.report()}, VOCABULARY)
    assert again.report() == chain.report()
    assert (again.stages, again.greedy) == (chain.stages, chain.greedy)


def test_greedy_keeps_masks_bias_and_penalties_only() -> None:
    fields = {"temperature": 1e-6, "top_p": 0.5, "min_p": 0.3, "logit_bias": {"1": 2}, "repetition_penalty": 1.3}
    chain = resolve(fields, VOCABULARY)
    assert chain.greedy and [item.name for item in chain.stages] == ["logit_bias", "repetition_penalty"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"sampler": "nucleus"}, "sampler.name"),
        ({"sampler": ["top_k", "nucleus"]}, "sampler[1].name"),
        ({"sampler": {"name": "top_k", "top_p": 0.5}}, "sampler.top_p"),
        ({"sampler": [{"name": "top_k", "top_k": 2.5}]}, "sampler[0].top_k"),
        ({"sampler": [{"top_k": 2}]}, "sampler[0].name"),
        ({"sampler": 3}, "sampler"),
        ({"sampler": ["top_k", "top_k"]}, "sampler[1].name"),
        ({"sampler": ["iid", "gumbel"]}, "sampler[1].name"),
        ({"sampler": ["top_k"] * (MAX_ITEMS + 1)}, "sampler"),
        ({"sampler": "min_tokens"}, "sampler.name"),
        ({"sampler": "logit_bias"}, "sampler.logit_bias"),
        ({"sampler_order": "mine"}, "sampler_order"),
        ({"temperature_last": 1}, "temperature_last"),
        ({"draw": "dice"}, "draw"),
        ({"draw": "iid", "sampler": "gumbel"}, "draw"),
        ({"temperature": 0.5, "sampler": {"name": "temperature", "temperature": 0.6}}, "temperature"),
        ({"typical_q": 0.5}, "typical_q"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 100.5}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_k": 10**400}, "top_k"),
        ({"logit_bias": {"1": 10**400}}, "logit_bias.1"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias." + "9" * 5000),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"min_p": -0.01}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"logit_bias": {"100": 1}}, "logit_bias.100"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [1, 100]}, "allowed_token_ids[1]"),
        ({"bad_words_ids": [[]]}, "bad_words_ids"),
        ({"bad_words_ids": [[1]] * 513}, "bad_words_ids"),
    ],
)
def test_errors_name_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(SamplerError) as caught:
        resolve(fields, VOCABULARY)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({"dry_base": 3.0}, "dry_multiplier"),
        ({"dry_allowed_length": 2, "dry_scope": "all"}, "dry_multiplier"),
        ({"dry_sequence_breakers": []}, "dry_multiplier"),
        ({"xtc_threshold": 0.2}, "xtc_probability"),
        ({"xtc_protect": False}, "xtc_probability"),
        ({"mirostat_eta": 0.3}, "mirostat_tau"),
        ({"mirostat_surprise": "renormalised"}, "mirostat_tau"),
        ({"adaptive_decay": 0.1}, "adaptive_p"),
        ({"smoothing_curve": 2}, "smoothing_factor"),
        ({"reuse_min_match": 3}, "reuse_cap"),
        ({"ngram_scope": "all"}, "no_repeat_ngram_size"),
        ({"repetition_scope": "output"}, "repetition_penalty"),
        ({"repetition_last_n": 64}, "repetition_penalty"),
        ({"dynatemp_exponent": 2}, "dynatemp_range"),
    ],
)
def test_a_parameter_of_a_stage_nobody_switches_on_is_refused(fields: dict[str, Any], needed: str) -> None:
    with pytest.raises(SamplerError, match=f"has no effect without .*'{needed}'") as caught:
        resolve(fields, VOCABULARY)
    assert caught.value.param in fields
    assert not resolve(fields, VOCABULARY, own=()).stages  # a preset may leave the rest to the request


@pytest.mark.parametrize(
    "fields",
    [
        {"dry_base": 1.75, "dry_scope": "output", "dry_sequence_breakers": ["\n", ":", '"', "*"]},  # neutral
        {"dry_penalty_last_n": 0},  # off
        {"xtc_threshold": 0.6},
        {"dynatemp_range": 0, "dynatemp_exponent": 2},
        {"temperature": 1, "dynatemp_exponent": 2},
        {"logit_bias": {}},
        {"sampler": [{"name": "xtc", "xtc_probability": 0, "xtc_threshold": 0.2}], "xtc_threshold": 0.2},
    ],
)
def test_neutral_values_and_switching_off_are_no_faults(fields: dict[str, Any]) -> None:
    assert not names(**fields)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(SamplerError, match=r"known: .*min_p.*temperature.*top_k"):
        resolve({"sampler": "nucleus"}, VOCABULARY)


def test_both_spellings_are_fine_when_they_agree() -> None:
    chain = resolve({"temperature": 0.5, "sampler": {"name": "temperature", "temperature": 0.5}}, VOCABULARY)
    assert chain.stages[0].values == {"temperature": 0.5, "dynatemp_range": 0.0, "dynatemp_exponent": 1.0}
    assert resolve({"top_k": 5.0}, VOCABULARY).stages[0].values == {"top_k": 5}
