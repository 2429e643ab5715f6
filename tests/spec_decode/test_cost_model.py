"""Costs: the line through what was measured, and how it follows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spec_decode.cost_model import CostModel, DraftCost, Latency

SWEEP = {1: 1.0, 2: 1.2, 4: 1.4, 8: 3.0}


def test_it_is_linear_between_measurements_and_beyond() -> None:
    latency = Latency(SWEEP)
    assert latency.seconds([1, 2, 3, 4, 6, 8, 10]) == pytest.approx([1.0, 1.2, 1.3, 1.4, 2.2, 3.0, 3.8])
    assert Latency({4: 1.0, 8: 3.0}).seconds(0) == 0.1  # never next to nothing


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.floats(0.1, 9.0))
def test_a_measurement_corrects_a_fifth_of_the_error(rows: int, seconds: float) -> None:
    latency = Latency(SWEEP)
    before = float(latency.seconds(rows))
    latency.observe(rows, seconds)
    assert float(latency.seconds(rows)) == pytest.approx(max(before + 0.2 * (seconds - before), 0.0))


def test_it_learns_another_line() -> None:
    rng = np.random.default_rng(1)
    latency = Latency({rows: 1.0 for rows in (1, 2, 4, 8, 16, 32)})
    for rows in rng.integers(1, 33, 3000):
        latency.observe(int(rows), 2 + 0.1 * rows)
    every = np.arange(1, 33)
    assert latency.seconds(every) == pytest.approx(2 + 0.1 * every, rel=0.01)


def test_steps_are_told_apart_by_context_and_drafts_by_source() -> None:
    per_depth, per_tree = Latency({1: 0.1, 2: 0.2}), Latency({1: 0.3, 2: 0.4})
    costs = CostModel(
        {100: Latency({1: 1.0, 2: 1.0}), 10_000: Latency({1: 5.0, 2: 5.0})},
        {"draft_model": DraftCost(per_depth, True), "suffix": DraftCost(per_tree, False)},
    )
    assert [float(costs.verify(1, context)) for context in (0, 100, 999, 1001, 10**6)] == [1, 1, 1, 5, 5]
    assert costs.draft("draft_model", 2, [0, 1, 3]) == pytest.approx([0, 0.2, 0.6])
    assert costs.draft("suffix", 1, [0, 1, 3]) == pytest.approx([0, 0.3, 0.3])
    assert costs.draft("unknown", 1, [0, 3]).tolist() == [0, 0]
    costs.observe_verify(1, 50, 2.0)
    assert float(costs.verify(1, 100)) == pytest.approx(1.2) and float(costs.verify(1, 10_000)) == 5
    costs.observe_draft("draft_model", 1, 4, 0.8)
    costs.observe_draft("suffix", 1, 4, 0.8)
    assert costs.draft("draft_model", 1, 1) == pytest.approx(0.12) and costs.draft("suffix", 1, 1) == pytest.approx(0.4)


def test_drafts_add_to_a_step_of_many_requests_what_they_add_to_a_step_of_one() -> None:
    one, many = Latency({1: 1.0, 5: 2.0, 9: 3.0}), Latency({1: 1.0, 16: 4.0})
    costs = CostModel({100: one}, {}, many)
    judging = 0.3  # of any drafts, before it is known better
    assert costs.verify([16, 20, 24], 100, 16) == pytest.approx([4.0, 5.0 + judging, 6.0 + judging])
    assert costs.verify([1, 5], 100, 1) == pytest.approx([1.0, 2.0 + judging])
    for _ in range(60):
        costs.observe_verify(16, 100, 6.0, 16)  # slower than it was at the start, drafts as well
        costs.observe_verify(20, 100, 10.0, 16)
    assert costs.verify([16, 20], 100, 16) == pytest.approx([6.0, 10.0], rel=1e-3)
    for _ in range(60):
        costs.observe_verify(20, 100, 1.0, 16)  # faster than without drafts: those would have been as fast
    without, drafts = costs.verify([16, 20], 100, 16)
    assert without == pytest.approx(1.0, rel=0.02) and without < drafts < 1.25


def test_what_any_drafts_cost_is_learnt_for_all_of_them() -> None:
    """Judging takes 0.8 beside the rows, however many there are."""
    rows = {1: 1.0, 2: 1.1, 4: 1.3, 8: 1.7, 16: 2.5, 32: 4.1}
    costs = CostModel({100: Latency(rows)}, {}, Latency({1: 1.0, 16: 4.0}))
    for step in range(80):
        drafted = (2, 3, 6)[step % 3]
        costs.observe_verify(1, 100, 1.0)
        costs.observe_verify(1 + drafted, 100, 1.0 + 0.1 * drafted + 0.8)
    assert costs.verify([1, 4, 30], 100, 1) == pytest.approx([1.0, 2.1, 4.7], rel=0.06)


def test_a_source_reads_a_text_before_it_guesses() -> None:
    costs = CostModel({}, {"draft_model": DraftCost(Latency({1: 0.1, 2: 0.1}), True, token_s=0.01)})
    assert costs.first_look("draft_model", 50) == pytest.approx(0.5)
    assert costs.first_look("suffix", 50) == 0.0


def test_steps_with_drafts_say_when_those_without_are_thought_too_slow() -> None:
    """Else drafts would seem free for as long as every step has some."""
    rows = {1: 1.0, 16: 2.5}
    costs = CostModel({100: Latency(rows)}, {}, Latency({1: 1.0, 16: 4.0}))
    for _ in range(30):
        costs.observe_verify(16, 100, 200.0, 16)
    for _ in range(60):
        costs.observe_verify(20, 100, 6.0, 16)
    assert costs.verify(16, 100, 16) < 6.1
