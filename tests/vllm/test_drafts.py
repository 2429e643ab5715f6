"""Rows behind drafts, driven by hand: the second generation of vLLM's interface while vLLM speculates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.request import DecodeRequest
from engine.runners.vllm.choice import Choice
from samplers.stack import SamplerStack
from tests.vllm.requests import decode_request

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate

from engine.runners.vllm.v1_adapter import V1Adapter
from engine.runners.vllm.v2_adapter import V2Adapter
from tests.vllm.test_adapters import CPU, VOCAB, State, context, logits_at, params_of, setup

__all__ = ["setup"]  # the fixture

STEPS = 12
CHAINS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 0.8, "min_p": 0.02},
    "greedy": {"temperature": 0, "repetition_penalty": 1.4},
    "penalties": {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    "mirostat": {"sampler": ["mirostat"]},
    "dry": {"sampler": [{"name": "dry", "dry_sequence_breakers": []}, "no_repeat_ngram"]},
    "arithmetic": {"sampler": ["arithmetic"], "presence_penalty": 0.5},
    "shuffled": {"sampler": [{"name": "arithmetic", "vocab_order": "seeded"}]},
    "gumbel": {"draw": "gumbel"},
    "in this order": {"sampler": ["top_k", {"name": "temperature", "temperature": 0.6}], "sampler_order": "given"},
}


def without_drafts(setup: Any, names: Sequence[str]) -> tuple[list[list[int]], list[list[Tensor]], list[Any]]:
    """(tokens, rows, (request, parameters)) of each chain, by the first generation."""
    adapter = V1Adapter(setup.config, CPU, False)
    both = [params_of(CHAINS[name]) for name in names]
    outputs: list[list[int]] = [[] for _ in both]
    rows: list[list[Tensor]] = [[] for _ in both]
    added = [(row, params, list(one.prompt_ids), outputs[row]) for row, (one, params) in enumerate(both)]
    adapter.update_state(BatchUpdate(len(both), [], added, []))
    for step in range(STEPS):
        drawn = adapter.apply(logits_at(step, list(range(len(both)))))
        for output, kept, row in zip(outputs, rows, drawn, strict=True):
            output.append(int(row.argmax()))
            kept.append(row)
    return outputs, rows, both


def guesses(right: Sequence[int], step: int, name: int) -> list[int]:
    """Up to three drafts: right ones, one that is wrong somewhere, places that vLLM had nothing for, or none."""
    kind = (step + name) % 5
    drafts = list(right)
    if kind == 1 and drafts:
        drafts[len(drafts) // 2] = (drafts[len(drafts) // 2] + 1) % VOCAB
    if kind == 2:
        drafts = [-1] * len(drafts)
    return [] if kind == 3 else drafts


def committed(rows: Tensor, drafts: Sequence[int]) -> list[int]:
    """What vLLM makes of rows at temperature 0."""
    tokens = []
    for row, draft in zip(rows, (*drafts, None), strict=True):
        tokens.append(int(row.argmax()))
        if tokens[-1] != draft:
            break
    return tokens


def test_drafts_change_no_token(setup: Any) -> None:
    names = list(CHAINS)[:8]
    expected, rows, both = without_drafts(setup, names)
    state, slots = State(), [5, 0, 7, 2, 1, 3, 6, 4]
    adapter = V2Adapter(setup.config, state)  # type: ignore[arg-type]
    outputs: list[list[int]] = [[] for _ in both]
    for slot, (one, params) in zip(slots, both, strict=True):
        state.write(slot, list(one.prompt_ids), [])
        assert adapter.add_request(slot, params)
    for step in range(STEPS):
        adapter.apply_staged_writes()
        if not (live := [at for at in range(len(both)) if len(outputs[at]) < STEPS]):
            break
        drafts = {at: guesses(expected[at][len(outputs[at]) :][:3], step, at) for at in live}
        places = [(at, len(outputs[at]) + depth) for at in live for depth in range(len(drafts[at]) + 1)]
        places = [(at, min(place, STEPS - 1)) for at, place in places]
        logits = torch.cat([logits_at(place, [at]) for at, place in places])
        before = logits.clone()
        ctx = context(state, [slots[at] for at in live], drafts=[drafts[at] for at in live])
        assert torch.equal(adapter.apply(logits, ctx), adapter.apply(before.clone(), ctx))  # as often as vLLM likes
        first = 0
        for at in live:
            mine = logits[first : first + len(drafts[at]) + 1]
            tokens = committed(mine, drafts[at])[: STEPS - len(outputs[at])]
            for depth in range(len(tokens)):
                assert torch.equal(mine[depth], rows[at][len(outputs[at]) + depth])
            untouched = slice(first + len(committed(mine, drafts[at])), first + len(mine))
            assert torch.equal(logits[untouched], before[untouched])  # rows that cannot be reached
            outputs[at] += tokens
            state.write(slots[at], list(both[at][0].prompt_ids), outputs[at])
            first += len(mine)
    assert outputs == expected


@pytest.mark.parametrize("name", CHAINS)
def test_a_step_may_come_in_parts(setup: Any, name: str) -> None:
    expected, _, [(one, params), (other, others)] = without_drafts(setup, [name, "plain"])
    state = State()
    adapter = V2Adapter(setup.config, state)  # type: ignore[arg-type]
    for slot, request, own in ((3, one, params), (1, other, others)):
        state.write(slot, list(request.prompt_ids), [])
        adapter.add_request(slot, own)
    found: dict[int, list[int]] = {3: [], 1: []}
    while min(map(len, found.values())) < STEPS:
        adapter.apply_staged_writes()
        for at, (slot, request) in enumerate(((3, one), (1, other))):
            start = len(found[slot])
            drafts = expected[at][start : start + 2]
            logits = torch.cat([logits_at(min(start + depth, STEPS - 1), [at]) for depth in range(len(drafts) + 1)])
            adapter.apply(logits, context(state, [slot], drafts=[drafts]))
            found[slot] += committed(logits, drafts)
            state.write(slot, list(request.prompt_ids), found[slot])
    assert [found[3][:STEPS], found[1][:STEPS]] == expected


def test_a_slot_may_change_hands_between_steps(setup: Any) -> None:
    """What the former owner's drafts did to its states stays with it."""
    expected, _, both = without_drafts(setup, ["arithmetic", "penalties"])
    state = State()
    adapter = V2Adapter(setup.config, state)  # type: ignore[arg-type]
    for at, (one, params) in enumerate(both):
        state.write(4, list(one.prompt_ids), [])
        adapter.add_request(4, params)
        adapter.apply_staged_writes()
        logits = torch.cat([logits_at(place, [at]) for place in range(3)])
        drafts = expected[at][:2]
        adapter.apply(logits, context(state, [4], drafts=[drafts]))
        assert committed(logits, drafts) == expected[at][:3]


def test_rows_of_vllm_s_own_requests_are_left_alone(setup: Any) -> None:
    state = State()
    adapter = V2Adapter(setup.config, state)  # type: ignore[arg-type]
    one, params = params_of(CHAINS["plain"])
    for slot in (2, 6):
        state.write(slot, list(one.prompt_ids), [])
    assert adapter.add_request(2, params) and not adapter.add_request(6, params_of(None)[1])
    adapter.apply_staged_writes()
    logits = torch.cat([logits_at(0, [1]) for _ in range(5)])
    before = logits.clone()
    adapter.apply(logits, context(state, [6, 2], drafts=[[8, 9], [-1]]))
    assert torch.equal(logits[[0, 1, 2, 4]], before[[0, 1, 2, 4]])
    assert int((logits[3] > -torch.inf).sum()) == 1


def test_an_empty_row_behind_a_draft_ends_the_choice_there(setup: Any) -> None:
    expected, _, [(one, params)] = without_drafts(setup, ["plain"])
    for drafts, ends in ((expected[0][:1], 1), ([(expected[0][0] + 1) % VOCAB], None)):
        state = State()
        setup.inbox.expect(f"{one.id}/0")
        adapter = V2Adapter(setup.config, state)  # type: ignore[arg-type]
        state.write(0, list(one.prompt_ids), [])
        adapter.add_request(0, params)
        adapter.apply_staged_writes()
        logits = logits_at(0, [0, 0])
        logits[1] = -torch.inf
        adapter.apply(logits, context(state, [0], drafts=[drafts]))
        report = setup.inbox.of(f"{one.id}/0", [expected[0][0], 9], 0)
        assert (None if report is None else report.position) == ends


# --- rows that vLLM draws from

SMALL = 6
FILTERS: list[dict[str, Any]] = [
    {"temperature": 0.7, "top_k": 3},
    {"min_p": 0.2, "presence_penalty": 1.5, "repetition_penalty": 1.3},
    {"top_p": 0.8, "bad_words_ids": [[2, 4]]},
    {"allowed_token_ids": [0, 2, 3], "temperature": 1.5},
]


def filtered_params(request: DecodeRequest) -> SamplingParams:
    return SamplingParams(extra_args=Choice.of(request, 0, filtered=True).pack())


def row_behind(tokens: Sequence[int]) -> Tensor:
    """What a model says behind these output tokens, [SMALL]."""
    seed = sum((token + 1) * (SMALL + 1) ** at for at, token in enumerate(tokens))
    return torch.randn(SMALL, generator=torch.Generator().manual_seed(seed)) * 2


def law_of(request: DecodeRequest, tokens: Sequence[int]) -> Tensor:
    """Of the next token, as plain decoding has it: [SMALL]."""
    stack = SamplerStack(1, SMALL, CPU)
    stack.admit(
        0, request.chain, seed=request.seed, choice=0, prompt_ids=request.prompt_ids, output_ids=tuple(tokens)
    )  # fmt: skip
    shaped, failures = stack.law(row_behind(tokens)[None], np.array([0]), np.array([len(tokens)]))
    assert not failures
    return shaped.softmax(1)[0].double()


@pytest.fixture
def small(setup: Any) -> Any:
    extras = setup.config.additional_config
    object.__setattr__(extras.setup, "vocab_size", SMALL)
    return setup


def filtered_rows(small: Any, request: DecodeRequest, output: Sequence[int], drafts: Sequence[int]) -> Tensor:
    """[1 + drafts, SMALL] laws that vLLM sees; of rows that it cannot reach what the model says."""
    state = State()
    adapter = V2Adapter(small.config, state)  # type: ignore[arg-type]
    state.write(1, list(request.prompt_ids), list(output))
    adapter.add_request(1, filtered_params(request))
    adapter.apply_staged_writes()
    logits = torch.stack([row_behind((*output, *drafts[:depth])) for depth in range(len(drafts) + 1)])
    return adapter.apply(logits, context(state, [1], drafts=[drafts])).softmax(1).double()


@pytest.mark.parametrize("fields", FILTERS, ids=lambda fields: ",".join(fields))
def test_the_law_of_two_tokens_is_that_of_plain_decoding(small: Any, fields: dict[str, Any]) -> None:
    """Whatever the draft is: accepted with its probability, replaced by one of the others otherwise."""
    request = decode_request(fields, SMALL, prompt_ids=(1, 3), seeded=False)
    plain = torch.stack([law_of(request, []) [one] * law_of(request, [one]) if law_of(request, [])[one] > 0
                         else torch.zeros(SMALL, dtype=torch.float64) for one in range(SMALL)])  # fmt: skip
    for draft in range(SMALL):
        first, second = filtered_rows(small, request, [], [draft])
        found = torch.zeros(SMALL, SMALL, dtype=torch.float64)
        if first[draft] > 0:
            found[draft] = first[draft] * second
        residual = first.clone()
        residual[draft] = 0.0
        for other in torch.nonzero(residual).flatten().tolist():
            found[other] = residual[other] * filtered_rows(small, request, [other], [])[0]
        assert torch.allclose(found, plain, atol=1e-6)


def test_states_wait_for_what_vllm_accepts(small: Any) -> None:
    """The same adapter over several steps, with drafts of which some are taken."""
    request = decode_request({"presence_penalty": 1.5, "frequency_penalty": 0.7}, SMALL, prompt_ids=(1, 3))
    state = State()
    adapter = V2Adapter(small.config, state)  # type: ignore[arg-type]
    state.write(1, list(request.prompt_ids), [])
    adapter.add_request(1, filtered_params(request))
    output: list[int] = []
    for drafts, taken in (([2, 2, 5], 2), ([0], 0), ([4, 1], 2), ([3, 3], 1)):
        adapter.apply_staged_writes()
        logits = torch.stack([row_behind((*output, *drafts[:depth])) for depth in range(len(drafts) + 1)])
        laws = adapter.apply(logits, context(state, [1], drafts=[drafts])).softmax(1).double()
        for depth, law in enumerate(laws):
            assert torch.allclose(law, law_of(request, [*output, *drafts[:depth]]), atol=1e-6)
        output += [*drafts[:taken], (sum(drafts) + 1) % SMALL]
        state.write(1, list(request.prompt_ids), output)
