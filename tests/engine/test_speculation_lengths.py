"""How much is drafted in the engine's loop: what requests say, what the server allows, what pays (T15, section 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.request import DecodeRequest
from engine.speculation import Speculation
from samplers.chain import resolve
from spec_decode.contract import DraftPlan, DraftTree, LoadedSource
from spec_decode.controller import PROBE_EVERY, PROBE_NODES
from spec_decode.cost_model import DraftCost, Latency
from spec_decode.worth import Worth
from tests.engine import speculating as helpers
from tests.engine.speculating import Answer, Speculating, ask, ask_all, one_hot_chain, scripted, speculating
from tests.engine.table_model import TableExecutor

VOCABULARY, POSITIONS = 8, 700
TABLE = 2.0 * torch.randn(1, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1))
AUTO = {"draft": "scripted", "verifier": "match"}


def executor(max_seqs: int = 32) -> TableExecutor:
    return TableExecutor(TABLE.expand(POSITIONS, -1, -1), max_seqs, 12000)


def request(length: int, seed: int = 0, **more: Any) -> DecodeRequest:
    return DecodeRequest(f"{seed}", (1, 2), resolve({}, VOCABULARY), seed, length, **more)


async def plain(requests: Sequence[DecodeRequest]) -> dict[int, list[int]]:
    async with speculating(executor(), []) as running:
        return {
            one.seed: own[0].tokens for one, own in zip(requests, await ask_all(running.engine, requests), strict=True)
        }


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Steps cost what a test says: (share of the first row's seconds that each further row costs)."""
    monkeypatch.setattr(Speculation, "measured", lambda *_: None)

    def set_to(share: float) -> None:
        latency = Latency({1: 1e-3, 512: 1e-3 * (1 + 511 * share)})
        monkeypatch.setattr(helpers, "CHEAP", {64: latency})

    return set_to


def quality(known: Mapping[int, Sequence[int]], good: Any) -> Any:
    """Drafts of tokens that are right where `good(position, seed)` says so."""

    def guess(writer: Any, plan: DraftPlan, noise: Any) -> DraftTree:
        seed, begun = writer.stream.key, len(writer.output)
        ahead = enumerate(known[seed][begun:], begun)
        return one_hot_chain([t if good(at, seed) else (t + 1) % VOCABULARY for at, t in ahead], plan)

    return guess


def lengths(running: Speculating) -> list[int]:
    """Drafted nodes of every step behind the prompt's."""
    return [sum(nodes for _, _, nodes, _ in step) for step in running.steps[1:]]


def steps_of(answer: Answer) -> int:
    assert answer.finish is not None and answer.finish.speculation is not None
    return answer.finish.speculation.steps


@pytest.mark.parametrize("cap", [1, 5, 16])
@pytest.mark.parametrize("wanted", [1, 4, 9, 32])
async def test_a_length_that_is_said_is_honoured_up_to_the_servers(costs: Any, wanted: int, cap: int) -> None:
    costs(5.0)  # nothing could pay less
    asked = request(40)
    known = await plain([asked])
    async with speculating(executor(), [scripted(quality(known, lambda at, seed: False))], max_depth=cap) as running:
        found = await ask(running.engine, replace(asked, speculation=running.spec(AUTO | {"num_tokens": wanted})))
    assert found[0].tokens == known[0]
    left = range(39, 0, -1)  # tokens still to come when a step begins
    assert lengths(running) == [min(wanted, cap, behind - 1) for behind in left]


async def test_steps_have_no_more_rows_than_the_server_allows() -> None:
    asked = [request(20, seed) for seed in range(6)]
    known = await plain(asked)
    async with speculating(executor(), [scripted(quality(known, lambda at, seed: True))], 16) as running:
        spec = running.spec(AUTO | {"num_tokens": 8})
        found = await ask_all(running.engine, [replace(one, speculation=spec) for one in asked])
    assert [own[0].tokens for own in found] == list(known.values())
    assert max(sum(count + nodes for _, count, nodes, _ in step) for step in running.steps) == 16


async def test_drafts_that_are_always_right_grow_to_the_cap(costs: Any) -> None:
    costs(0.01)
    asked = request(300)
    known = await plain([asked])
    async with speculating(executor(), [scripted(quality(known, lambda at, seed: True))], max_depth=12) as running:
        found = await ask(running.engine, replace(asked, speculation=running.spec(AUTO)))
    assert found[0].tokens == known[0] and steps_of(found[0]) < 300 / 8
    assert set(lengths(running)[3:-1]) == {12}


async def test_useless_drafts_cease_and_come_back_when_they_are_good(costs: Any) -> None:
    costs(0.3)
    asked = request(600)
    known = await plain([asked])
    source = scripted(quality(known, lambda at, seed: at >= 300))
    async with speculating(executor(), [source]) as running:
        found = await ask(running.engine, replace(asked, speculation=running.spec(AUTO)))
    assert found[0].tokens == known[0]
    drafted = lengths(running)
    useless = drafted[:299]  # one token each
    assert sum(useless[60:290]) <= PROBE_NODES * (230 / PROBE_EVERY + 1)
    assert max(useless[60:290]) <= PROBE_NODES
    again = next(step for step, nodes in enumerate(drafted) if step > 298 and nodes > PROBE_NODES)
    assert again < 298 + 3 * 32
    assert len(drafted) < 299 + 64 + 300 / 3


async def test_at_a_full_batch_where_rows_cost_alike_nothing_is_drafted(costs: Any) -> None:
    """Section 9: acceptance 0.2 at batch 32, steps proportional to their rows."""
    costs(1.0)
    asked = [request(100, seed) for seed in range(32)]
    known = await plain(asked)
    async with speculating(executor(), [scripted(quality(known, lambda at, seed: (at + seed) % 5 == 0))]) as running:
        spec = running.spec(AUTO)
        found = await ask_all(running.engine, [replace(one, speculation=spec) for one in asked])
    assert [own[0].tokens for own in found] == list(known.values())
    full = [
        sum(nodes for _, _, nodes, _ in step)
        for step in running.steps
        if len(step) == 32 and all(count == 1 for _, count, _, _ in step)
    ]
    assert len(full) > 80 and 0 in full[:64]
    assert sum(full) <= 0.04 * 32 * len(full)  # what probes may cost, at most in some steps together


async def test_a_drafter_that_takes_for_ever_is_not_asked(costs: Any) -> None:
    costs(0.01)
    asked = request(60)
    known = await plain([asked])
    good = scripted(quality(known, lambda at, seed: True), drawing=True)
    slow = LoadedSource(good.source, good.drafter, DraftCost(Latency({1: 1e6, 2: 1e6}), per_depth=True))
    async with speculating(executor(), [slow]) as running:
        found = await ask(running.engine, replace(asked, speculation=running.spec(AUTO)))
    assert found[0].tokens == known[0] and not any(lengths(running))


async def test_where_thinking_is_not_worth_it_only_those_who_say_how_much_get_drafts(costs: Any) -> None:
    costs(0.01)
    asked = [request(60, seed) for seed in range(2)]
    known = await plain(asked)
    async with speculating(executor(), [scripted(quality(known, lambda at, seed: True))]) as running:
        running.engine._loop._speculation._worth = Idle()
        ways = [running.spec(AUTO), running.spec(AUTO | {"num_tokens": 4})]
        specs = [replace(one, speculation=way) for one, way in zip(asked, ways, strict=True)]
        found = await ask_all(running.engine, specs)
    assert [own[0].tokens for own in found] == list(known.values())
    free, fixed = (own[0].finish.speculation for own in found if own[0].finish is not None)
    assert free is not None and free.drafted == 0 and free.steps == 60
    assert fixed is not None and fixed.accepted == fixed.drafted > 40


async def test_whole_steps_are_compared(costs: Any) -> None:
    """Their tokens are all that went into outputs, those of requests that do not speculate included."""
    costs(0.01)
    asked = [request(40, seed) for seed in range(4)]
    known = await plain(asked)
    async with speculating(executor(), [scripted(quality(known, lambda at, seed: True))]) as running:
        running.engine._loop._speculation._worth = seen = Idle()
        spec = running.spec(AUTO)
        await ask_all(running.engine, [replace(one, speculation=spec if one.seed else None) for one in asked])
    full = [(tokens, thought, seconds > 0) for requests, thought, tokens, seconds in seen.steps if requests == 4]
    assert len(full) > 30 and set(full) == {(4, False, True)}


class Idle(Worth):
    """Thinking never pays."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[int, bool, int, float]] = []

    def thinks(self, requests: int) -> bool:
        return False

    def observe(self, requests: int, thought: bool, tokens: int, seconds: float) -> None:
        self.steps.append((requests, thought, tokens, seconds))
