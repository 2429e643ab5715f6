"""A stage, state or draw with a bug ends the requests that use it, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from samplers.chain import Chain, Item, resolve
from samplers.contract import Param
from samplers.registry import DRAWS, STAGES
from samplers.stack import SamplerStack
from samplers.stage import BaseDraw, BaseStage

VOCABULARY = 20
CPU = torch.device("cpu")


class Plain:
    """A state without faults."""

    def __init__(self) -> None:
        self.accepted: list[tuple[list[int], list[int]]] = []

    def admit(self, slot: int, admission: Any) -> None: ...
    def accept(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        self.accepted.append((slots.tolist(), tokens.tolist()))

    def snapshot(self, slot: int) -> Any: ...
    def restore(self, slot: int, snapshot: Any) -> None: ...
    def fork(self, parent: int, child: int) -> None: ...
    def free(self, slot: int) -> None: ...


@pytest.fixture
def stage() -> Iterator[type[BaseStage]]:
    """A registered stage that does nothing; tests give it a result and a state."""

    class Faulty(BaseStage):
        name, order, params = "faulty", 12.7, (Param("faulty", float, 0.0),)
        result: Callable[[torch.Tensor], Any] = staticmethod(lambda logits: logits + 0)
        state: Any = None

        def new_state(self, shape: Any) -> Any:
            return self.state

        def shape(self, logits: torch.Tensor, *_: Any) -> Any:
            return type(self).result(logits)

    STAGES.register(Faulty)
    yield Faulty
    del STAGES._items["faulty"]


@pytest.fixture
def draw() -> Iterator[Any]:
    class FaultyDraw(BaseDraw):
        name, params = "faulty_draw", (Param("loaded", int, 0, low=0, high=10**9, default=3),)
        result: Callable[[torch.Tensor, Any], Any]

        def pick(self, logits: torch.Tensor, params: Any, rows: Any, noise: Any) -> Any:
            return type(self).result(logits, params)

    DRAWS.register(FaultyDraw)
    yield FaultyDraw
    del DRAWS._items["faulty_draw"]


def rows(count: int = 4) -> torch.Tensor:
    return torch.randn(count, VOCABULARY, generator=torch.Generator().manual_seed(1))


def admit(stack: SamplerStack, slot: int, fields: dict[str, Any]) -> None:
    stack.admit(slot, resolve(fields, VOCABULARY), seed=slot, choice=0, prompt_ids=[1, 2])


def four(fields: dict[str, Any]) -> SamplerStack:
    """Slots 1 and 2 use what `fields` name, 0 and 3 do not."""
    stack = SamplerStack(5, VOCABULARY, CPU)
    for slot in range(4):
        admit(stack, slot, fields if slot in (1, 2) else {"temperature": 0.7})
    return stack


def assert_only(stack: SamplerStack, failed: set[int], message: str = "failed") -> None:
    """Exactly these of slots 0 to 3 fail; the others draw what they would draw alone."""
    raw = rows()
    before = raw.clone()
    result = stack.sample(raw, np.arange(4), np.zeros(4, np.int64))
    assert torch.equal(raw, before)
    assert set(result.failures) == failed
    assert all(code == "internal_error" and message in text for code, text in result.failures.values())
    assert result.tokens.dtype == torch.int64 and result.tokens.min() >= 0 and result.tokens.max() < VOCABULARY
    for slot in {0, 3} - failed:
        alone = SamplerStack(5, VOCABULARY, CPU)
        admit(alone, slot, {"temperature": 0.7})
        assert alone.sample(raw[slot : slot + 1], np.array([slot]), np.zeros(1, np.int64)).tokens == result.tokens[slot]


@pytest.mark.parametrize(
    "result",
    [
        lambda logits: logits[:, :5],
        lambda logits: logits[:1],
        lambda logits: logits.double(),
        lambda logits: logits.numpy(),
        lambda logits: None,
        lambda logits: logits / torch.zeros(3, 3),
    ],
)
def test_a_stage_that_returns_nonsense(stage: Any, result: Callable[[torch.Tensor], Any]) -> None:
    stage.result = result
    assert_only(four({"faulty": 1.0}), {1, 2})


def test_a_stage_that_makes_a_row_not_a_number_is_not_the_models_fault(stage: Any) -> None:
    stage.result = lambda logits: logits * torch.nan
    assert_only(four({"faulty": 1.0}), {1, 2}, "a sampler made")


def test_a_stage_that_returns_its_input_leaves_the_raw_rows_alone(stage: Any) -> None:
    stage.result = lambda logits: logits
    stack = SamplerStack(2, VOCABULARY, CPU)
    admit(stack, 0, {"faulty": 1.0})
    admit(stack, 1, {"faulty": 1.0, "min_p": 0.5})  # the next stage has only one of the rows
    raw = rows(2)
    before = raw.clone()
    processed, failures = stack.shape(raw, np.arange(2), np.zeros(2, np.int64))
    assert torch.equal(raw, before) and not failures
    assert torch.equal(processed[0], raw[0]) and (processed[1] == -torch.inf).any()


@pytest.mark.parametrize("event", ["accept", "fork", "snapshot", "restore"])
def test_a_state_that_raises_ends_the_requests_it_belongs_to(stage: Any, event: str) -> None:
    stage.state = Plain()
    stack = four({"faulty": 1.0})
    admit(stack, 3, {"temperature": 0.7, "frequency_penalty": 1.0})
    snapshot = stack.snapshot(1)

    def broken(*_: Any) -> None:
        raise ValueError("injected")

    setattr(stage.state, event, broken)
    tokens = torch.tensor([4, 5, 6, 7])
    if event == "accept":
        assert stack.accept(np.arange(4), tokens) == dict.fromkeys(
            (1, 2), ("internal_error", "sampler 'faulty' failed")
        )
        expected = {1, 2}
    elif event == "fork":
        stack.fork(2, 1)
        expected = {1}
    elif event == "snapshot":
        stack.snapshot(1)
        expected = {1}
    else:
        stack.restore(1, snapshot)
        expected = {1}
    if event != "accept":
        assert set(stack.accept(np.arange(4), tokens)) == expected
    shaped, _ = stack.shape(torch.zeros(1, VOCABULARY), np.array([3]), np.array([0]))
    assert shaped[0, 7] < 0  # the neighbour's own state has accepted its token
    admit(stack, 3, {"temperature": 0.7})
    assert_only(stack, expected)
    for slot in (1, 2):  # the next owner of the slot has nothing to do with it
        admit(stack, slot, {"temperature": 0.7})
    assert_only(stack, set())


def test_a_state_that_cannot_let_go_does_not_keep_the_slot(stage: Any) -> None:
    stage.state = Plain()
    stack = four({"faulty": 1.0})

    def broken(*_: Any) -> None:
        raise ValueError("injected")

    stage.state.free = broken
    stack.free(1)
    admit(stack, 1, {"temperature": 0.7})
    assert_only(stack, set())


@pytest.mark.parametrize(
    "result",
    [
        lambda logits: torch.full(logits.shape[:1], VOCABULARY),
        lambda logits: torch.full(logits.shape[:1], -1),
        lambda logits: torch.zeros(1, dtype=torch.int64),
        lambda logits: torch.zeros(logits.shape),
        lambda logits: torch.zeros(logits.shape[:1]),
        lambda logits: [0] * len(logits),
        lambda logits: 1 // 0,
    ],
)
def test_a_draw_that_returns_nonsense(draw: Any, result: Callable[[torch.Tensor], Any]) -> None:
    draw.result = lambda logits, params: result(logits)
    assert_only(four({"draw": "faulty_draw"}), {1, 2})


def test_a_draw_cannot_pick_a_masked_token(draw: Any) -> None:
    draw.result = lambda logits, params: torch.full(logits.shape[:1], 7)
    stack = four({"draw": "faulty_draw"})
    admit(stack, 2, {"draw": "faulty_draw", "allowed_token_ids": [3]})
    assert_only(stack, {2})  # its neighbour with the same draw may have the token


def test_a_draw_takes_parameters_as_stages_do(draw: Any) -> None:
    draw.result = lambda logits, params: params["loaded"]
    stack = SamplerStack(5, VOCABULARY, CPU)
    asked = [
        ({"draw": "faulty_draw"}, 3),
        ({"sampler": "faulty_draw", "temperature": 0.5}, 3),
        ({"draw": "faulty_draw", "loaded": 8}, 8),
        ({"sampler": ["top_k", {"name": "faulty_draw", "loaded": 0}]}, 0),
    ]
    for slot, (fields, token) in enumerate(asked):
        chain = resolve(fields, VOCABULARY)
        assert chain.report()[-1] == {"name": "faulty_draw", "loaded": token}
        assert resolve({"sampler": chain.report()}, VOCABULARY).draw == chain.draw
        if "top_k" not in str(fields):
            admit(stack, slot, fields)
    stack.fork(2, 3)
    assert stack.sample(rows(), np.arange(4), np.zeros(4, np.int64)).tokens.tolist() == [3, 3, 8, 8]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"loaded": 2}, "loaded"),  # the plain draw has no such parameter
        ({"draw": "gumbel", "loaded": 2}, "loaded"),
        ({"draw": "faulty_draw", "loaded": -1}, "loaded"),
        ({"sampler": {"name": "faulty_draw", "loaded": 1.5}}, "sampler.loaded"),
        ({"sampler": {"name": "faulty_draw", "weight": 1}}, "sampler.weight"),
        ({"sampler": {"name": "faulty_draw", "loaded": 2}, "loaded": 4}, "loaded"),
        ({"sampler": {"name": "iid", "loaded": 2}}, "sampler.loaded"),
    ],
)
def test_parameters_of_a_draw_are_checked(draw: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ValueError) as caught:
        resolve(fields, VOCABULARY)
    assert caught.value.param == param
    assert resolve({"loaded": 0}, VOCABULARY).draw == Item("iid", {})  # its neutral value changes nothing


def test_orders_that_clients_choose_do_not_pile_up() -> None:
    stack = SamplerStack(3, VOCABULARY, CPU)
    names = ["top_k", "top_p", "min_p", "temperature"]
    orders = [names[i:] + names[:i] for i in range(4)] + [names[::-1]]
    for _ in range(20):
        for slot, order in enumerate([*orders, *orders]):
            items = [{"name": name, **({"temperature": 0.5} if name == "temperature" else {})} for name in order]
            fields = {"sampler": items, "sampler_order": "given"}
            admit(stack, slot % 3, fields)
            chain: Chain = resolve(fields, VOCABULARY)
            kept = stack._orders[stack._order_of[slot % 3]]
            assert kept == ("min_tokens", *(item.name for item in chain.stages))
    assert len(stack._orders) <= 1 + 3


def test_a_state_that_cannot_be_made_fails_the_requests_that_use_it(stage: Any) -> None:
    def refuse(self: Any, shape: Any) -> Any:
        raise RuntimeError("no room")

    stage.new_state = refuse
    stack = SamplerStack(2, VOCABULARY, CPU)
    admit(stack, 0, {"temperature": 0.7})
    with pytest.raises(RuntimeError, match="'faulty' could not be set up"):
        admit(stack, 1, {"faulty": 1.0})
    stack.free(1)
    assert not stack.sample(rows(1), np.array([0]), np.zeros(1, np.int64)).failures
