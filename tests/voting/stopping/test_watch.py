"""Choosing a stopping rule, and what holds of every one of them."""

from __future__ import annotations

import json
from collections import Counter
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplers.contract import SamplerError
from voting.stopping.contract import STOPPING_RULES
from voting.stopping.in_order import InOrder
from voting.stopping.lead import Lead
from voting.stopping.watch import read_stop

NAMES = ("none", "beta", "esc", "mode_cert")
LABELS = st.lists(st.sampled_from(["a", "b", "c", None]), max_size=60)


def test_the_rules_there_are() -> None:
    assert {rule.name for rule in STOPPING_RULES} == set(NAMES)
    assert [STOPPING_RULES.get(name).default_samples for name in NAMES] == [None, 40, 40, 40]
    assert [rule.name for rule in STOPPING_RULES if rule.needs_iid] == ["mode_cert"]


def test_defaults() -> None:
    assert read_stop(None).rule.name == "none"
    assert read_stop("beta").values == {"threshold": 0.95, "every": 1}
    assert read_stop({"rule": "esc", "window": None}).values == {"window": 5, "answer_from": "all"}
    assert read_stop({"rule": "mode_cert", "alpha": 0.01}).values == {
        "alpha": 0.01,
        "warmup": 3,
        "max_targets": 1,
        "weighted": False,
        "report_only": False,
    }


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (3, "voting.stop"),
        ([], "voting.stop"),
        ("sometimes", "voting.stop"),
        ({}, "voting.stop.rule"),
        ({"rule": None}, "voting.stop.rule"),
        ({"rule": ["beta"]}, "voting.stop.rule"),
        ({"rule": "sometimes"}, "voting.stop.rule"),
        ({"rule": "none", "threshold": 0.9}, "voting.stop.threshold"),
        ({"rule": "beta", "window": 3}, "voting.stop.window"),
        ({"rule": "esc", "theshold": None}, "voting.stop.theshold"),
        *(({"rule": "beta", "threshold": bad}, "voting.stop.threshold") for bad in (0.5, 1, 0, -1, 2, "x", True)),
        *(({"rule": "beta", "every": bad}, "voting.stop.every") for bad in (0, 1.5, float("nan"))),
        *(({"rule": "esc", "window": bad}, "voting.stop.window") for bad in (0, -1, 2.5)),
        ({"rule": "esc", "answer_from": "none"}, "voting.stop.answer_from"),
        *(({"rule": "mode_cert", "alpha": bad}, "voting.stop.alpha") for bad in (0, 0.51, -0.1)),
        ({"rule": "mode_cert", "warmup": 0}, "voting.stop.warmup"),
        ({"rule": "mode_cert", "max_targets": 0}, "voting.stop.max_targets"),
        ({"rule": "mode_cert", "weighted": 1}, "voting.stop.weighted"),
    ],
)
def test_errors_name_the_field(given: Any, param: str) -> None:
    with pytest.raises(SamplerError) as caught:
        read_stop(given)
    assert caught.value.param == param


def test_alpha_may_be_a_half() -> None:
    assert read_stop({"rule": "mode_cert", "alpha": 0.5}).values["alpha"] == 0.5


@pytest.mark.parametrize("name", NAMES)
@given(LABELS)
def test_every_rule(name: str, labels: list[str | None]) -> None:
    found = read_stop(name).over((label, 1.0) for label in labels)
    assert found.seen <= len(labels)
    assert found.fired or found.seen == len(labels)
    again = read_stop(name).over((label, 1.0) for label in labels[: found.seen])
    report = found.report()
    assert report == again.report()  # what follows does not matter
    assert report["fired_at"] == (found.seen if found.fired else None)
    assert not (found.fired and set(labels[: found.seen]) == {None})
    assert list(found.basis) == list(range(found.seen))
    json.dumps(report, allow_nan=False)
    if found.fired:
        with pytest.raises(ValueError, match="fired"):
            found.feed("a")


def test_none_never_fires() -> None:
    found = read_stop("none").over([("a", 1.0)] * 500)
    assert found.report() == {"rule": "none", "fired_at": None, "value": None}


@given(LABELS)
def test_the_lead_goes_to_whoever_gets_there_first(labels: list[str | None]) -> None:
    lead, said = Lead(), [label for label in labels if label is not None]
    for label in said:
        lead.add(label)
    counts = Counter(said)
    best = max(counts.values(), default=0)
    places = {one: [i for i, label in enumerate(said) if label == one] for one in counts}
    reached = {one: at[-1] for one, at in places.items() if len(at) == best}
    assert lead.leader == min(reached, key=reached.__getitem__, default=None)
    assert lead.totals == counts


def test_samples_are_looked_at_in_index_order() -> None:
    labels = "abbaa"
    for order in permutations(range(5)):
        waiting, seen, finished = InOrder[str](), [], set()
        for index in order:
            seen += waiting.finish(index, labels[index])
            finished.add(index)
            whole = next(i for i in range(6) if i not in finished)  # of the prefix that has finished
            assert seen == list(labels[:whole])
        assert seen == list(labels)
        for index in range(5):
            with pytest.raises(ValueError, match="already"):
                waiting.finish(index, "a")
