"""Programs give the same through engine, scheduler, executor and stack as over a plain function, with others beside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch

from engine.request import DecodeRequest, Output
from samplers.chain import resolve
from samplers.programs.branch import Mixture
from samplers.programs.contract import PROGRAMS
from samplers.testing.program_world import Entry, Outcome, decode
from tests.engine.table_model import END, MAX_TOKENS, PROMPT, VOCABULARY, make_table, table_engine

TABLE = make_table(3)
ITEMS: list[dict[str, Any]] = [
    {"name": "priority"},
    {"name": "priority", "key": "joint", "branch_width": 4},
    {"name": "priority", "parallel": 3},
    {"name": "beam", "beam_width": 6},
    {"name": "beam", "beam_width": 6, "groups": 3, "stop": "first", "length_penalty": 0.0},
    {"name": "conditional_beam", "beam_width": 6, "event": {"min_len": 2}},
    {"name": "eager", "theta": 0.9},
    {"name": "eager", "theta": -1.0, "fork_mode": "split"},
    {"name": "tree", "candidates": 2, "budget": 12},
    {"name": "tree", "select": "puct", "rollout": "sample", "parallel": 3},
]
N = 6


def law(entries: tuple[Entry, ...]) -> list[float]:
    before = [entry for entry in (*PROMPT, *entries) if not isinstance(entry, Mixture)]
    row: list[float] = TABLE[len(before) - 1, before[-1]].tolist()
    return row


def request(item: dict[str, Any], seed: int) -> DecodeRequest:
    chain = resolve({"sampler": item, "temperature": 1.0}, VOCABULARY)
    return DecodeRequest(str(seed), PROMPT, chain, seed, MAX_TOKENS, n=N, eos_token_ids=frozenset({END}))


def expected(item: dict[str, Any], seed: int) -> Outcome:
    chain = resolve({"sampler": item, "temperature": 1.0}, VOCABULARY)
    assert chain.program is not None
    return decode(
        PROGRAMS.get(item["name"]),
        law,
        n=N,
        max_tokens=MAX_TOKENS,
        values=dict(chain.program.values),
        ending_ids=(END,),
        prompt=PROMPT,
        seed=seed,
    )


def check_agreement(item: dict[str, Any], output: Output, want: Outcome) -> None:
    """What a runner has answered is what the program does over a plain function."""
    assert N - output.absent == len(want.choices), item
    for number, choice in want.choices.items():
        delta = output.deltas[number]
        assert tuple(delta.token_ids) == choice.ids, item
        assert delta.finish is not None and choice.end is not None
        assert (delta.finish.reason, delta.finish.stop_token_id) == (choice.end.reason, choice.end.token), item
        assert delta.finish.details == pytest.approx(choice.details, nan_ok=True), item
        assert delta.logprobs == pytest.approx([token.logprob for token in choice.tokens]), item
    assert output.report is not None
    assert output.report["forward_passes"] == want.passes, item
    assert {name: output.report[name] for name in want.report} == want.report, item


async def whole(outputs: AsyncIterator[Output]) -> Output:
    """All outputs of a request in one."""
    merged = Output()
    async for output in outputs:
        merged.absorb(output)
    return merged


@pytest.mark.parametrize(("slots", "pages"), [(64, 400), (2, 12)], ids=["room", "two slots, few pages"])
def test_the_engine_and_a_plain_function_give_the_same(slots: int, pages: int) -> None:
    async def run() -> list[Output]:
        engine, scheduler = table_engine(TABLE, max_seqs=slots, num_pages=pages)
        try:
            plain = DecodeRequest("plain", PROMPT, resolve({}, VOCABULARY), 5, MAX_TOKENS, n=3)
            requests = [request(item, seed) for seed, item in enumerate(ITEMS)]
            outputs = await asyncio.gather(*(whole(engine.stream(one)) for one in [*requests, plain]))
            assert scheduler.pages.in_use == 0 and len(scheduler.free_slots) == slots
            return list(outputs[: len(ITEMS)])
        finally:
            engine.close(1.0)

    for seed, (item, output) in enumerate(zip(ITEMS, asyncio.run(run()), strict=True)):
        want = expected(item, seed)
        check_agreement(item, output, want)
        if slots > 2 and output.report is not None:
            assert output.report["tokens_computed"] == want.computed, item


def test_the_table_is_not_trivial() -> None:
    texts = {item["name"]: expected(item, 0).texts for item in ITEMS}
    assert len({tuple(text) for text in texts.values()}) > 1
    assert torch.isfinite(TABLE).all()
