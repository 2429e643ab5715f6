"""Chains of many requests at once: each row gets what it would get alone, and failures stay in their rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from samplers.chain import Chain, Item, resolve
from samplers.contract import Param
from samplers.registry import STAGES
from samplers.stack import Sampled, SamplerStack
from samplers.stage import BaseStage

VOCABULARY = 50
REQUESTS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 0.6, "top_p": 0.8},
    {"top_k": 3, "min_p": 0.1},
    {"sampler": ["min_p", "top_k"], "sampler_order": "given", "temperature": 1.4},
    {"repetition_penalty": 1.5, "frequency_penalty": 0.7, "presence_penalty": -0.4},
    {"temperature": 0, "repetition_penalty": 1.5, "top_k": 1},
    {"logit_bias": {"3": 5, "7": -100}, "draw": "gumbel"},
    {"allowed_token_ids": [4, 9, 11]},
    {"bad_words_ids": [[5], [1, 2]]},
    {"temperature": 2.0, "top_k": 10, "temperature_last": True},
]


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


def admit(stack: SamplerStack, slot: int, fields: dict[str, Any], **changes: Any) -> None:
    options = {"seed": slot, "choice": 0, "prompt_ids": [1, 2, 3, 1]} | changes
    stack.admit(slot, resolve(fields, VOCABULARY), **options)


def sample(stack: SamplerStack, rows: torch.Tensor, slots: list[int], position: int = 0) -> Sampled:
    return stack.sample(rows, np.array(slots), np.full(len(slots), position))


def test_a_mixed_batch_equals_every_request_alone() -> None:
    count = len(REQUESTS)
    history: list[list[int]] = [[] for _ in REQUESTS]
    together = SamplerStack(count, VOCABULARY, torch.device("cpu"))
    for slot, fields in enumerate(REQUESTS):
        admit(together, slot, fields)
    for step in range(6):
        rows = logits(count, step)
        result = sample(together, rows, list(range(count)), step)
        assert not result.failures
        for slot, fields in enumerate(REQUESTS):
            alone = SamplerStack(count, VOCABULARY, torch.device("cpu"))
            admit(alone, slot, fields, output_ids=history[slot])
            single = sample(alone, rows[slot : slot + 1], [slot], step)
            assert torch.equal(single.processed[0], result.processed[slot]), fields
            assert single.tokens[0] == result.tokens[slot], fields
        for slot, token in enumerate(result.tokens.tolist()):
            history[slot].append(token)
        together.accept(np.arange(count), result.tokens)


def test_row_order_does_not_matter_and_neutral_rows_are_untouched() -> None:
    count = len(REQUESTS)
    stack = SamplerStack(count, VOCABULARY, torch.device("cpu"))
    for slot, fields in enumerate(REQUESTS):
        admit(stack, slot, fields)
    rows, order = logits(count), np.random.default_rng(0).permutation(count)
    before = rows.clone()
    straight = sample(stack, rows, list(range(count)))
    shuffled = sample(stack, rows[order], order.tolist())
    assert torch.equal(straight.tokens[order], shuffled.tokens)
    assert torch.equal(rows, before)  # raw rows belong to the caller
    for neutral in (0, 1):
        assert torch.equal(straight.processed[neutral], rows[neutral])


def test_masks_win_over_bias_and_stay_minus_infinity() -> None:
    stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
    fields = {"allowed_token_ids": [4, 5], "logit_bias": {"9": 100}, "presence_penalty": -2, "temperature": 0.5}
    admit(stack, 0, fields)
    processed = sample(stack, logits(1), [0]).processed[0]
    assert set(torch.nonzero(processed > -torch.inf).flatten().tolist()) == {4, 5}


def test_min_tokens_masks_endings_until_it_is_reached() -> None:
    stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
    admit(stack, 0, {"temperature": 0}, ending_ids=frozenset({7, 8}), min_tokens=3)
    rows = logits(1)
    rows[0, 7] = 50.0
    for position in range(3):
        assert sample(stack, rows, [0], position).tokens[0] not in (7, 8)
    assert sample(stack, rows, [0], 3).tokens[0] == 7


def test_counts_follow_accept_restore_and_fork() -> None:
    stack = SamplerStack(3, VOCABULARY, torch.device("cpu"))
    fields = {"frequency_penalty": 1.0, "temperature": 1.0}
    admit(stack, 0, fields)

    def penalty(slot: int) -> list[float]:
        rows = torch.zeros(1, VOCABULARY)
        return (-stack.shape(rows, np.array([slot]), np.array([0]))[0][0]).tolist()

    def count(tokens: list[int]) -> list[float]:
        return [float(tokens.count(token)) for token in range(VOCABULARY)]

    for token in (5, 6, 5):
        stack.accept(np.array([0]), torch.tensor([token]))
    saved = stack.snapshot(0)
    stack.accept(np.array([0]), torch.tensor([9]))
    assert penalty(0) == count([5, 6, 5, 9])
    stack.restore(0, saved)
    assert penalty(0) == count([5, 6, 5])
    stack.fork(0, 2)
    stack.accept(np.array([2]), torch.tensor([8]))
    assert penalty(2) == count([5, 6, 5, 8]) and penalty(0) == count([5, 6, 5])
    stack.free(0)
    admit(stack, 0, fields)
    assert penalty(0) == count([])


def test_what_a_batch_is_found_to_be_is_forgotten_when_a_slot_changes() -> None:
    """The same slots are asked for all the time while their owners come, fork and go."""
    together = SamplerStack(3, VOCABULARY, torch.device("cpu"))
    random = np.random.default_rng(0)
    owners: list[tuple[dict[str, Any], int, list[int]]] = []  # fields, seed, tokens so far
    for slot in range(3):
        owners.append(({}, slot, []))
        admit(together, slot, {})
    for step in range(120):
        slot, other = (int(one) for one in random.permutation(3)[:2])
        if step % 3 == 1:
            owners[slot] = (REQUESTS[int(random.integers(len(REQUESTS)))], step, [])
            admit(together, slot, owners[slot][0], seed=step)
        elif step % 3 == 2:
            fields, seed, tokens = owners[other]
            owners[slot] = (fields, seed, list(tokens))
            together.fork(other, slot)
        rows, found = logits(3, step), sample(together, logits(3, step), [0, 1, 2], step)
        for row, (fields, seed, tokens) in enumerate(owners):
            alone = SamplerStack(1, VOCABULARY, torch.device("cpu"))
            admit(alone, 0, fields, seed=seed, output_ids=tokens)
            expected = sample(alone, rows[row : row + 1], [0], step)
            assert torch.equal(found.processed[row], expected.processed[0]) and found.tokens[row] == expected.tokens[0]
            tokens.append(int(found.tokens[row]))
        assert not together.accept(np.arange(3), found.tokens)


def test_frequency_and_presence_share_one_count_of_what_was_generated() -> None:
    stack = SamplerStack(2, VOCABULARY, torch.device("cpu"))
    admit(stack, 0, {"frequency_penalty": 0.5, "presence_penalty": 0.25})
    admit(stack, 1, {"presence_penalty": 0.25})
    assert stack._stages["frequency_penalty"].state is stack._stages["presence_penalty"].state
    for token in (5, 5, 6):
        stack.accept(np.array([0, 1]), torch.tensor([token, token]))
    shaped, _ = stack.shape(torch.zeros(2, VOCABULARY), np.array([0, 1]), np.array([0, 0]))
    assert shaped[:, [5, 6, 7]].tolist() == [[-1.25, -0.75, 0.0], [-0.25, -0.25, 0.0]]
    stack.free(0)
    stack.accept(np.array([1]), torch.tensor([7]))
    admit(stack, 0, {"frequency_penalty": 1.0}, output_ids=[9])
    shaped, _ = stack.shape(torch.zeros(2, VOCABULARY), np.array([0, 1]), np.array([0, 0]))
    assert shaped[:, [5, 7, 9]].tolist() == [[0.0, 0.0, -1.0], [-0.25, -0.25, 0.0]]


@pytest.mark.parametrize("penalty", [1e-46, 1e-34, 1e-30, 1e-28, 1e-5, 10])
@pytest.mark.parametrize("temperature", [0, 1e-5, 1, 100])
def test_the_strongest_penalties_stay_numbers(penalty: float, temperature: float) -> None:
    stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
    admit(stack, 0, {"repetition_penalty": penalty, "temperature": temperature, "allowed_token_ids": [1, 2, 3, 7]})
    rows = torch.full((1, VOCABULARY), -3.0)
    rows[0, [1, 2, 7]] = torch.tensor([20.0, 0.0, 25.0])
    result = sample(stack, rows, [0])
    assert not result.failures
    assert set(torch.nonzero(result.processed[0] > -torch.inf).flatten().tolist()) == {1, 2, 3, 7}
    if temperature < 100:
        assert result.tokens[0] == (7 if penalty > 1 else 1)


def test_masks_do_not_hide_a_model_that_has_gone_wrong() -> None:
    for fields in ({"allowed_token_ids": [1]}, {"bad_words_ids": [[4]]}, {}):
        for value in (torch.nan, torch.inf):
            stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
            admit(stack, 0, fields, ending_ids=frozenset({4}), min_tokens=2)
            rows = logits(1)
            rows[0, 4] = value
            (code, message), *_ = sample(stack, rows, [0]).failures.values()
            assert code == "internal_error" and "the model" in message


def test_an_ending_outside_the_vocabulary_masks_nothing() -> None:
    stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
    for endings in ({VOCABULARY, -1}, {VOCABULARY, 3}):
        admit(stack, 0, {}, ending_ids=frozenset(endings), min_tokens=2)
        processed = sample(stack, logits(1), [0]).processed[0]
        assert torch.nonzero(processed == -torch.inf).flatten().tolist() == [i for i in (3,) if i in endings]


def test_an_ending_outside_the_vocabulary_harms_no_stage_and_no_neighbour() -> None:
    stack = SamplerStack(2, VOCABULARY, torch.device("cpu"))
    fields = {"xtc_probability": 1.0, "dry_multiplier": 1.0, "dry_sequence_breakers": []}
    admit(stack, 0, fields, ending_ids=frozenset({VOCABULARY, -1}), min_tokens=2)
    admit(stack, 1, fields)
    rows = torch.zeros(2, VOCABULARY)
    rows[:, :2] = 10.0
    rows[:, 1] += 0.1
    shaped, failures = stack.shape(rows, np.array([0, 1]), np.array([0, 0]))
    assert not failures and (shaped[:, 1] == -torch.inf).all() and shaped[:, 0].isfinite().all()


def test_biases_of_many_sizes_in_one_batch() -> None:
    stack = SamplerStack(4, VOCABULARY, torch.device("cpu"))
    sizes = [1, 40, 3, 1]
    for slot, size in enumerate(sizes):
        admit(stack, slot, {"logit_bias": {str(token): slot - token / 10 for token in range(size)}})
    stack.fork(1, 3)
    shaped, _ = stack.shape(torch.zeros(4, VOCABULARY), np.arange(4), np.zeros(4, np.int64))
    for slot, (size, bias) in enumerate(zip([1, 40, 3, 40], [0, 1, 2, 1], strict=True)):
        expected = [bias - token / 10 if token < size else 0.0 for token in range(VOCABULARY)]
        assert torch.allclose(shaped[slot], torch.tensor(expected))


def test_seed_choice_and_position_decide_the_draw_and_nothing_else() -> None:
    rows = torch.zeros(1, VOCABULARY)

    def draw(slot: int, seed: int, choice: int, position: int) -> int:
        stack = SamplerStack(8, VOCABULARY, torch.device("cpu"))
        admit(stack, slot, {}, seed=seed, choice=choice)
        return int(sample(stack, rows, [slot], position).tokens[0])

    assert {draw(slot, 3, 1, 5) for slot in range(8)} == {draw(0, 3, 1, 5)}
    for other in range(3):
        values = [draw(0, *(3 + i if k == other else 3 for k in range(3))) for i in range(12)]
        assert len(set(values)) > 4


def test_ties_of_a_greedy_row_go_to_the_lowest_id() -> None:
    stack = SamplerStack(1, VOCABULARY, torch.device("cpu"))
    admit(stack, 0, {"temperature": 0})
    rows = torch.zeros(1, VOCABULARY)
    rows[0, [17, 9, 33]] = 1.0
    assert sample(stack, rows, [0]).tokens.tolist() == [9]


@pytest.fixture
def broken_stage() -> Iterator[str]:
    class Broken(BaseStage):
        name, order, params = "broken", 12.7, (Param("broken", float, 0.0),)

        def shape(self, *_: Any) -> torch.Tensor:
            raise RuntimeError("injected")

    STAGES.register(Broken)
    yield "broken"
    del STAGES._items["broken"]


def test_failures_stay_in_their_rows(broken_stage: str) -> None:
    stack = SamplerStack(5, VOCABULARY, torch.device("cpu"))
    for slot in (0, 1, 3):
        admit(stack, slot, {})
    broken = Chain((Item(broken_stage, {"broken": 1.0}),), Item("iid", {}), greedy=False)
    stack.admit(2, broken, seed=2, choice=0, prompt_ids=[1])
    admit(stack, 4, {"allowed_token_ids": [6]})
    rows = logits(5)
    rows[1, 4] = torch.nan
    rows[4, 6] = -torch.inf
    result = sample(stack, rows, list(range(5)))
    assert {row: code for row, (code, _) in result.failures.items()} == {
        1: "internal_error",
        2: "internal_error",
        4: "constraint_unsatisfiable",
    }
    for row in (0, 3):
        assert result.tokens[row] == sample(stack, rows[row : row + 1], [row]).tokens[0]


def test_a_reused_slot_knows_nothing_of_its_last_owner() -> None:
    used, fresh = (SamplerStack(1, VOCABULARY, torch.device("cpu")) for _ in range(2))
    for fields in REQUESTS:
        admit(used, 0, fields)
        used.accept(np.array([0]), torch.tensor([3]))
        used.free(0)
    admit(used, 0, {"temperature": 0.9})
    admit(fresh, 0, {"temperature": 0.9})
    rows = logits(1)
    assert torch.equal(sample(used, rows, [0]).processed, sample(fresh, rows, [0]).processed)
    assert sample(used, rows, [0]).tokens == sample(fresh, rows, [0]).tokens
