"""Both generations of vLLM's interface around the same core, driven by hand: no engine, no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.request import DecodeRequest
from engine.runners.vllm.extras import Extras, ProcessorSetup
from engine.runners.vllm.reports import ReportInbox
from samplers.model_facts import NO_FACTS
from tests.vllm.requests import decode_request

pytest.importorskip("vllm")

from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor import LogitsProcessor as V1Processor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2Processor
from vllm.v1.worker.gpu.sample.logits_processor.loader import build_custom_logits_processors_params_validator

from engine.runners.vllm.sampling import sampling_of
from engine.runners.vllm.start import ADAPTERS
from engine.runners.vllm.v1_adapter import V1Adapter
from engine.runners.vllm.v2_adapter import V2Adapter

VOCAB, SLOTS, LONGEST = 50, 8, 64
CPU = torch.device("cpu")
FIELDS: list[dict[str, Any] | None] = [
    {"temperature": 0.8, "min_p": 0.02},
    None,  # drawn by vLLM
    {"sampler": ["arithmetic"], "presence_penalty": 1.0},
    {"temperature": 0, "repetition_penalty": 1.4},
]


@pytest.fixture
def setup(tmp_path: Any) -> Any:
    inbox = ReportInbox(str(tmp_path / "reports"))
    yield SimpleNamespace(
        config=SimpleNamespace(
            additional_config=Extras({}, ProcessorSetup(NO_FACTS, VOCAB, 2 * SLOTS, str(tmp_path / "reports"))),
            parallel_config=SimpleNamespace(rank=0, tensor_parallel_size=1),
        ),
        inbox=inbox,
    )
    inbox.close()


def params_of(fields: dict[str, Any] | None) -> tuple[DecodeRequest, Any]:
    request = decode_request(fields or {}, VOCAB)
    return request, sampling_of(request, 0, native=fields is None)


def logits_at(step: int, names: list[int]) -> Tensor:
    """A row for each request, the same whatever the row's place."""
    rows = [torch.randn(VOCAB, generator=torch.Generator().manual_seed(100 * name + step)) * 3 for name in names]
    return torch.stack(rows)


@dataclass
class State:
    """What the second generation shows of vLLM's requests."""

    device: torch.device = CPU

    def __post_init__(self) -> None:
        self.all_token_ids = SimpleNamespace(gpu=torch.zeros(SLOTS, LONGEST, dtype=torch.int32))
        self.total_len = SimpleNamespace(gpu=torch.zeros(SLOTS, dtype=torch.int32))
        self.prompt_len = SimpleNamespace(np=np.zeros(SLOTS, np.int32))

    def write(self, slot: int, prompt: list[int], output: list[int]) -> None:
        known = [*prompt, *output]
        self.all_token_ids.gpu[slot, : len(known)] = torch.tensor(known, dtype=torch.int32)
        self.total_len.gpu[slot] = len(known)
        self.prompt_len.np[slot] = len(prompt)


def context(
    state: State, slots: list[int], pos: list[int] | None = None, drafts: Sequence[Sequence[int]] | None = None
) -> Any:
    """drafts: of each slot; there is a row behind each."""
    at = [int(state.total_len.gpu[slot]) - 1 for slot in slots] if pos is None else pos
    known = [state.all_token_ids.gpu[slot, place].item() for slot, place in zip(slots, at, strict=True)]
    rows = [
        (slot, depth, place + depth, token)
        for slot, place, last, guessed in zip(slots, at, known, drafts or [()] * len(slots), strict=True)
        for depth, token in enumerate((last, *guessed))
    ]
    mapping, depths, positions, ids = torch.tensor(rows, dtype=torch.int32).T
    return SimpleNamespace(expanded_idx_mapping=mapping, expanded_local_pos=depths, pos=positions, input_ids=ids)


def test_adapters_are_of_the_generations_they_are_chosen_for() -> None:
    assert issubclass(V1Adapter, V1Processor) and issubclass(V2Adapter, V2Processor)
    build_custom_logits_processors_params_validator([ADAPTERS[True]])
    with pytest.raises(ValueError, match="V1Adapter is not a subclass"):
        build_custom_logits_processors_params_validator([ADAPTERS[False]])
    from vllm.v1.sample.logits_processor import _load_custom_logitsprocs

    assert _load_custom_logitsprocs([ADAPTERS[False]]) == [V1Adapter]
    with pytest.raises(ValueError, match="V2Adapter must be a subclass"):
        _load_custom_logitsprocs([ADAPTERS[True]])


def test_both_generations_write_the_same_rows(setup: Any) -> None:
    first = V1Adapter(setup.config, CPU, False)
    state = State()
    second = V2Adapter(setup.config, state)  # type: ignore[arg-type]
    both = [params_of(fields) for fields in FIELDS]
    slots = [5, 0, 7, 2]
    outputs: list[list[int]] = [[] for _ in both]
    first.update_state(
        BatchUpdate(
            len(both),
            removed=[],
            added=[(row, params, list(one.prompt_ids), outputs[row]) for row, (one, params) in enumerate(both)],
            moved=[],
        )
    )
    for slot, (one, params) in zip(slots, both, strict=True):
        state.write(slot, list(one.prompt_ids), [])
        assert second.add_request(slot, params) == (params.extra_args is not None)
    for step in range(5):
        ours, theirs = logits_at(step, [0, 1, 2, 3]), logits_at(step, [3, 2, 1, 0])
        first.apply(ours)
        second.apply_staged_writes()
        second.apply(theirs, context(state, slots[::-1]))
        assert torch.equal(ours, theirs.flip(0))
        assert torch.equal(ours[1], logits_at(step, [1])[0])
        for row, (slot, (one, _)) in enumerate(zip(slots, both, strict=True)):
            outputs[row].append(int(ours[row].argmax()))
            state.write(slot, list(one.prompt_ids), outputs[row])
        first.update_state(None)


def drawn(adapter: V1Adapter, names: list[int], step: int) -> list[int]:
    return adapter.apply(logits_at(step, names)).argmax(1).tolist()


def test_rows_of_the_first_generation_move(setup: Any) -> None:
    adapter, alone = V1Adapter(setup.config, CPU, False), V1Adapter(setup.config, CPU, False)
    (one, params), (other, others) = params_of(FIELDS[0]), params_of(FIELDS[3])
    mine: list[int] = []
    prompt = list(one.prompt_ids)
    alone.update_state(BatchUpdate(1, [], [(0, params, prompt, [])], []))
    expected = drawn(alone, [0], 0)[0]
    added = [(0, others, list(other.prompt_ids), []), (1, params, prompt, mine)]
    adapter.update_state(BatchUpdate(2, [], added, []))
    assert drawn(adapter, [3, 0], 0)[1] == expected
    adapter.update_state(BatchUpdate(2, [], [], [(0, 1, MoveDirectionality.SWAP)]))
    assert drawn(adapter, [0, 3], 0)[0] == expected
    adapter.update_state(BatchUpdate(2, [], [], [(0, 1, MoveDirectionality.SWAP)]))
    adapter.update_state(BatchUpdate(1, [0], [], [(1, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    assert drawn(adapter, [0], 0) == [expected]
    adapter.update_state(BatchUpdate(1, [], [(0, params_of(None)[1], prompt, [])], []))  # replaces it
    row = logits_at(0, [1])
    assert torch.equal(adapter.apply(row.clone()), row)


def test_processors_run_for_greedy_batches(setup: Any) -> None:
    assert V1Adapter(setup.config, CPU, False).is_argmax_invariant() is False


def test_slots_of_the_second_generation_are_recycled(setup: Any) -> None:
    state = State()
    adapter = V2Adapter(setup.config, state)  # type: ignore[arg-type]
    one, params = params_of(FIELDS[3])
    state.write(4, list(one.prompt_ids), [])
    adapter.add_request(4, params)
    adapter.apply_staged_writes()
    adapter.add_request(4, params_of(None)[1])  # vLLM's own takes the slot
    adapter.apply_staged_writes()
    row = logits_at(0, [1])
    assert torch.equal(adapter.apply(row.clone(), context(state, [4])), row)


def test_rows_inside_a_prompt_draw_nothing(setup: Any) -> None:
    state = State()
    adapter = V2Adapter(setup.config, state)  # type: ignore[arg-type]
    one, params = params_of(FIELDS[0])
    state.write(1, list(one.prompt_ids), [])
    adapter.add_request(1, params)
    adapter.apply_staged_writes()
    row = logits_at(0, [1])
    assert torch.equal(adapter.apply(row.clone(), context(state, [1], pos=[0])), row)
    first = adapter.apply(row.clone(), context(state, [1]))
    assert torch.equal(adapter.apply(row.clone(), context(state, [1])), first)  # again, for the same position


def test_a_request_comes_back_with_its_tokens(setup: Any) -> None:
    """Preempted, it may get another slot of vLLM's."""
    state = State()
    adapter = V2Adapter(setup.config, state)  # type: ignore[arg-type]
    first = V1Adapter(setup.config, CPU, False)
    one, params = params_of(FIELDS[2])
    output: list[int] = []
    first.update_state(BatchUpdate(1, [], [(0, params, list(one.prompt_ids), output)], []))
    tokens = []
    for step, slot in enumerate((3, 6, 6, 0)):
        state.write(slot, list(one.prompt_ids), tokens)
        if step != 2:
            adapter.add_request(slot, params)
        adapter.apply_staged_writes()
        tokens.append(int(adapter.apply(logits_at(step, [0]), context(state, [slot])).argmax()))
        output.append(int(first.apply(logits_at(step, [0])).argmax()))
    assert tokens == output


def test_of_tensor_parallel_ranks_the_first_one_speaks(setup: Any) -> None:
    one, params = params_of({"allowed_token_ids": [3]})
    row = logits_at(0, [0])
    row[0, 3] = -torch.inf
    setup.inbox.expect(f"{one.id}/0")
    for rank, speaks in ((1, False), (3, False), (2, True)):
        setup.config.parallel_config = SimpleNamespace(rank=rank, tensor_parallel_size=2)
        adapter = V1Adapter(setup.config, CPU, False)
        adapter.update_state(BatchUpdate(1, [], [(0, params, list(one.prompt_ids), [])], []))
        adapter.apply(row.clone())
        assert (setup.inbox.of(f"{one.id}/0", [9], 0) is not None) == speaks


def test_a_row_without_tokens_is_reported(setup: Any) -> None:
    adapter = V1Adapter(setup.config, CPU, False)
    one, params = params_of({"allowed_token_ids": [3]})
    setup.inbox.expect(f"{one.id}/0")
    adapter.update_state(BatchUpdate(1, [], [(0, params, list(one.prompt_ids), [])], []))
    row = logits_at(0, [0])
    row[0, 3] = -torch.inf
    assert torch.equal(adapter.apply(row.clone()), row)
    report = setup.inbox.of(f"{one.id}/0", [9], 0)
    assert report is not None and (report.position, report.code) == (0, "constraint_unsatisfiable")
    setup.inbox.count(report)
    assert setup.inbox.masked_rows == 1
