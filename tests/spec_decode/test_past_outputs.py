"""Past outputs against a search through all of them; nobody sees another tenant's."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.rng import Noise
from spec_decode.contract import DraftAdmission, DraftPlan
from spec_decode.drafters import Suffix
from spec_decode.drafters import past_outputs as module
from spec_decode.drafters.growth import Growth
from spec_decode.drafters.past_outputs import PastOutputs
from spec_decode.drafters.tenants import TenantLimits, Tenants
from spec_decode.tree_forms import chain
from tests.spec_decode.counting import Searched

NO_NOISE = Noise(np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64))
GROWTH, PLAN = Growth(2.0, 3, 0.0), DraftPlan(12, 4, None, 3)
outputs = st.lists(st.lists(st.integers(0, 2), max_size=20), max_size=12)  # 252 tokens with their ends
endings = st.lists(st.integers(0, 2), min_size=1, max_size=14)


def draft(past: PastOutputs, ending: Sequence[int]) -> list[int]:
    return GROWTH.best(past.matches(ending), past.continuations, PLAN).tokens


@settings(max_examples=150, deadline=None)
@given(outputs, endings)
def test_matches_and_counts_are_those_of_a_search(texts: list[list[int]], ending: list[int]) -> None:
    past = PastOutputs(2**8, 100)  # just large enough, so that unequal stretches share chains
    for text in texts:
        past.add(text, 0.0)
    every = [match.length for match in past.matches(ending)]
    assert every == sorted(set(every), reverse=True)
    slow = Searched(texts, ending, 1000, among=False)
    lengths = {match.length: match.place for match in slow.matches()}
    found = list(past.matches(ending))
    assert set(every) <= set(lengths)
    assert max(lengths, default=0) == max((match.length for match in found), default=0)
    for match in found:
        place, stretch = match.place, lengths[match.length]
        for _ in range(5):
            mine = {one.token: (one.times, one.place) for one in past.continuations(place)}
            other = {one.token: (one.times, one.place) for one in slow.continuations(stretch)}
            few = min(module.MOST_LOOKED_AT, sum(times for times, _ in other.values()))
            if few == module.MOST_LOOKED_AT:
                break
            assert {token: times for token, (times, _) in mine.items()} == {
                token: times for token, (times, _) in other.items()
            }
            if not mine:
                break
            token = min(mine)
            place, stretch = mine[token][1], other[token][1]


def test_a_place_is_looked_up_only_at_its_latest_occurrences() -> None:
    past = PastOutputs(2**12, 1000)
    for _ in range(module.MOST_LOOKED_AT):
        past.add([1, 2], 0.0)
    assert draft(past, [1])[0] == 2
    for _ in range(module.MOST_LOOKED_AT):
        past.add([1, 0], 0.0)
    [match] = past.matches([1])
    assert {one.token: one.times for one in past.continuations(match.place)} == {0: module.MOST_LOOKED_AT}


@pytest.mark.parametrize("capacity", [32, 2**13])
def test_the_oldest_make_room_and_what_is_left_is_as_if_they_had_never_been(capacity: int) -> None:
    """The ring of 32 wraps around all the time; that of 8192 grows once."""
    rng = random.Random(3)
    past, held = PastOutputs(capacity, 40), []
    most = 50 if capacity > 32 else 12
    for step in range(1200 if capacity == 32 else 500):
        text = [rng.randrange(50 if capacity > 32 else 3) for _ in range(rng.randrange(most))]
        past.add(text, float(step))
        held.append(text)
        while len(held) > 40 or sum(len(one) + 1 for one in held) > capacity:
            held.pop(0)
        assert len(past) == len(held)
        if step % 100 == 7:
            past.expire(step - 2.0)
            held = held[-3:]
        fresh = PastOutputs(capacity, 40)
        for one in held[-5:] if step % 10 else held:
            fresh.add(one, 0.0)
        if step % 10 == 0:
            ending = [rng.randrange(3) for _ in range(9)]
            assert draft(past, ending) == draft(fresh, ending)


def test_of_a_long_output_the_end_is_kept() -> None:
    past = PastOutputs(16, 10)
    past.add(list(range(100)), 0.0)
    assert draft(past, [90])[:4] == [91, 92, 93, 94]
    assert not draft(past, [50])
    past.add([], 1.0)
    assert len(past) == 1  # which makes room even for an empty one


actions = st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 3), max_size=12)), max_size=20)


@settings(max_examples=80, deadline=None)
@given(actions, endings)
def test_a_tenant_is_served_as_if_it_were_alone(added: list[tuple[str, list[int]]], ending: list[int]) -> None:
    everybody = Tenants(TenantLimits(tokens=64))
    alone = {name: Tenants(TenantLimits(tokens=64)) for name in "abc"}
    for now, (name, output) in enumerate(added):
        everybody.add(name, output, float(now))
        alone[name].add(name, output, float(now))
    for name in "abc":
        past, own = everybody.past(name, 100.0), alone[name].past(name, 100.0)
        assert (past is None) == (own is None) == (name not in {name for name, _ in added})
        if past is not None and own is not None:
            assert draft(past, ending) == draft(own, ending)


def test_outputs_and_tenants_are_forgotten() -> None:
    tenants = Tenants(TenantLimits(tokens=64, tenants=2, seconds=10))
    tenants.add("a", [1, 2, 3], 0.0)
    tenants.add("a", [1, 2, 4], 5.0)
    past = tenants.past("a", 9.0)
    assert past is not None and len(past) == 2
    assert tenants.past("a", 12.0) is past and len(past) == 1
    tenants.add("b", [1], 12.0)
    tenants.add("c", [1], 12.0)
    assert tenants.past("a", 12.0) is None  # two others have written since
    tenants.add("b", [1], 12.0)
    tenants.add("d", [1], 12.0)
    assert tenants.past("c", 12.0) is None and tenants.past("b", 12.0) is not None


def test_only_finished_outputs_of_requests_that_ask_for_it_are_remembered() -> None:
    tenants = Tenants(TenantLimits())
    source = Suffix()
    drafter = source.new_drafter(tenants, clock=lambda: 0.0)
    options = {param.name: param.neutral for param in source.params}
    shared = options | {"scope": "tenant"}
    story = [5, 6, 7, 8, 9]
    drafter.admit(0, DraftAdmission([1, 2], 2, shared, tenant="a"))
    drafter.admit(1, DraftAdmission([1, 2], 2, options, tenant="b"))
    drafter.admit(2, DraftAdmission([1, 2], 2, shared, tenant="c"))
    for slot in range(3):
        drafter.commit(slot, story)
    drafter.free(0, keep=True)
    drafter.free(1, keep=True)  # looks at its own text only, so it gives nothing away either
    drafter.free(2)  # aborted, or not to be stored
    assert [tenants.past(name, 0.0) is None for name in "abc"] == [False, True, True]
    drafter.admit(0, DraftAdmission([3, 5, 6], 3, shared, tenant="a"))
    drafter.admit(1, DraftAdmission([3, 5, 6], 3, shared, tenant="b"))
    drafter.admit(2, DraftAdmission([3, 5, 6], 3, options, tenant="a"))
    drafter.admit(3, DraftAdmission([3, 1, 2], 3, shared, tenant="a"))  # prompts are not remembered
    plan = DraftPlan(4, 4, chain(4))
    trees = drafter.propose([0, 1, 2, 3], [plan] * 4, NO_NOISE)
    assert [tree.tokens.tolist() for tree in trees] == [[7, 8], [], [], []]
    assert trees[0].matched == 2


def test_a_request_prefers_the_longer_match() -> None:
    source = Suffix()
    tenants = Tenants(TenantLimits())
    tenants.add("a", [1, 2, 3, 4, 4, 4], 0.0)
    drafter = source.new_drafter(tenants, clock=lambda: 0.0)
    options = {param.name: param.neutral for param in source.params} | {"scope": "tenant", "factor": 0.5}
    plan = DraftPlan(1, 1, chain(1))
    drafter.admit(0, DraftAdmission([2, 3, 5, 2, 3], 5, options, tenant="a"))
    [tree] = drafter.propose([0], [plan], NO_NOISE)
    assert tree.tokens.tolist() == [5]  # both match two tokens
    drafter.admit(0, DraftAdmission([0, 2, 3, 5, 1, 2, 3], 7, options, tenant="a"))
    [tree] = drafter.propose([0], [plan], NO_NOISE)
    assert tree.tokens.tolist() == [4]  # three in the past output
