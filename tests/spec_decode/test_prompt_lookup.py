"""Prompt lookup against a search through the whole text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.contract import SamplerError
from samplers.rng import Noise, Stream
from spec_decode.contract import DRAFT_SOURCES, DraftAdmission, DraftPlan, DraftTree
from spec_decode.drafters import PromptLookup

NO_NOISE = Noise(np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64))
few_tokens = st.lists(st.integers(0, 2), max_size=40)


def searched(text: list[int], low: int, high: int, first: bool, most: int, ending: set[int]) -> tuple[list[int], int]:
    """Draft and length of the match, by definition."""
    for length in range(high, low - 1, -1):
        if length < len(text):
            starts = [at for at in range(length, len(text)) if text[at - length : at] == text[-length:]]
            if starts:
                draft: list[int] = []
                for token in text[starts[0 if first else -1] :][:most]:
                    draft.append(token)
                    if token in ending:
                        break
                return draft, length
    return [], 0


def shown(tree: DraftTree) -> tuple[list[int], int]:
    tree.check()
    assert tree.parents.tolist() == list(range(-1, len(tree.tokens) - 1))
    return tree.tokens.tolist(), tree.matched


@settings(max_examples=200, deadline=None)
@given(few_tokens, few_tokens, st.integers(1, 4), st.integers(0, 4), st.booleans(), st.integers(0, 6), st.booleans())
def test_it_finds_what_a_search_finds(
    prompt: list[int], output: list[int], low: int, more: int, first: bool, most: int, ends: bool
) -> None:
    ending = {2} if ends else set()
    drafter = PromptLookup().new_drafter()
    options = {"min": low, "max": low + more, "pick": "first" if first else "recent"}
    drafter.admit(3, DraftAdmission(prompt, len(prompt), options, frozenset(ending)))
    drafter.fork(3, 1, Stream(0, 1))
    drafter.commit(1, [0, 1, 2])
    plan = DraftPlan(most, 5)
    for at in range(0, len(output), 3):
        [tree] = drafter.propose([3], [plan], NO_NOISE)
        so_far = prompt + output[:at]
        assert shown(tree) == searched(so_far, low, low + more, first, min(most, 5), ending)
        drafter.commit(3, output[at : at + 3])
    [tree] = drafter.propose([1], [plan], NO_NOISE)  # the fork has gone its own way
    assert shown(tree) == searched([*prompt, 0, 1, 2], low, low + more, first, min(most, 5), ending)


def test_a_loop_is_copied_up_to_the_end_of_the_text() -> None:
    assert searched([1, 2, 3, 1, 2], 2, 5, False, 8, set()) == ([3, 1, 2], 2)


def test_a_freed_slot_is_gone() -> None:
    drafter = PromptLookup().new_drafter()
    drafter.admit(0, DraftAdmission([1], 1, {"min": 1, "max": 2, "pick": "first"}))
    drafter.free(0, keep=True)
    with pytest.raises(KeyError):
        drafter.commit(0, [1])


def test_the_source_is_registered_and_checks_its_parameters() -> None:
    source = DRAFT_SOURCES.get("prompt_lookup")
    assert not source.draws and not source.branches
    source.check({"min": 3, "max": 3, "pick": "first"}, "spec_decode.ngram")
    with pytest.raises(SamplerError) as error:
        source.check({"min": 4, "max": 3, "pick": "first"}, "spec_decode.ngram")
    assert error.value.param == "spec_decode.ngram.min"
