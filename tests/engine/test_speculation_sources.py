"""A request with two sources: in each step it is drafted for by the one that pays more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from engine.request import DecodeRequest
from samplers.chain import resolve
from spec_decode.contract import DraftPlan, DraftTree, LoadedSource
from spec_decode.cost_model import DraftCost, Latency
from tests.engine.speculating import (
    Scripted,
    ScriptedSource,
    Speculating,
    Writer,
    ask,
    ask_all,
    one_hot_chain,
    speculating,
)  # fmt: skip
from tests.engine.table_model import TableExecutor

VOCABULARY, LENGTH = 8, 400
TABLE = 2.0 * torch.randn(1, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1))


class Model(ScriptedSource):
    """Stands for a draft model."""

    name: ClassVar[str] = "model"

    def __init__(self) -> None:
        super().__init__(drawing=True)


class Text(ScriptedSource):
    """Stands for a source that looks drafts up."""

    name: ClassVar[str] = "text"


class Guess:
    """Drafts of known tokens, wrong ones from `start` on or before it."""

    def __init__(self, known: dict[int, Sequence[int]], start: int, right_before: bool) -> None:
        self.known, self.start, self.right_before = known, start, right_before
        self.broken = False

    def __call__(self, writer: Writer, plan: DraftPlan, noise: Any) -> DraftTree:
        if self.broken:
            raise RuntimeError("injected")
        begun = len(writer.output)
        ahead = enumerate(self.known[writer.stream.key][begun:], begun)
        tokens = [t if (at < self.start) == self.right_before else (t + 1) % VOCABULARY for at, t in ahead]
        tree = one_hot_chain(tokens, plan)
        return tree if self.right_before else replace(tree, matched=3)


def executor(max_seqs: int = 8) -> TableExecutor:
    return TableExecutor(TABLE.expand(LENGTH + 8, -1, -1), max_seqs, 12000)


def request(seed: int, n: int = 1) -> DecodeRequest:
    return DecodeRequest(f"{seed}", (1, 2), resolve({}, VOCABULARY), seed, LENGTH, n=n)


async def plain(requests: Sequence[DecodeRequest]) -> dict[int, Sequence[int]]:
    async with speculating(executor(), []) as running:
        answers = await ask_all(running.engine, requests)
    return {one.seed: own[0].tokens for one, own in zip(requests, answers, strict=True)}


def sources(known: dict[int, Sequence[int]], change: int = LENGTH // 2) -> tuple[list[LoadedSource], Guess, Guess]:
    """The model is right up to the change, the text behind it."""
    model, text = Guess(known, change, True), Guess(known, change, False)
    cost = DraftCost(Latency({1: 1e-5, 512: 1e-5}), per_depth=True)
    return [LoadedSource(Model(), Scripted(model), cost), LoadedSource(Text(), Scripted(text))], model, text


def by_source(running: Speculating) -> dict[str, tuple[int, int]]:
    return {source: (done.drafted, done.accepted) for (source, _), done in running.engine.stats().speculation.items()}


@pytest.mark.parametrize("requests", [1, 4])
async def test_each_step_is_drafted_for_by_the_source_that_is_right(requests: int) -> None:
    asked = [request(seed) for seed in range(requests)]
    known = await plain(asked)
    loaded, _, _ = sources(known)
    async with speculating(executor(), loaded) as running:
        spec = running.spec("auto")
        assert spec is not None and [one.name for one in spec.sources] == ["model", "text"]
        answers = await ask_all(running.engine, [replace(one, speculation=spec) for one in asked])
        counted = by_source(running)
    for own in answers:
        assert own[0].tokens == known[asked[answers.index(own)].seed]
        assert own[0].finish is not None and own[0].finish.speculation is not None
        done = own[0].finish.speculation
        assert done.steps < LENGTH / 4 and done.emitted == LENGTH
        for source in ("model", "text"):
            assert done.accepted_by[source] > 0.35 * done.drafted_by[source] > 0.35 * LENGTH / 3
        assert done.drafted == done.drafted_by.total() and done.accepted == done.accepted_by.total()
    for source in ("model", "text"):
        done_by = [own[0].finish.speculation for own in answers if own[0].finish is not None]
        assert counted[source] == (
            sum(done.drafted_by[source] for done in done_by if done is not None),
            sum(done.accepted_by[source] for done in done_by if done is not None),
        )
    assert counted["auto"] == (0, 0)  # steps without drafts, the first one for instance


async def test_where_one_source_breaks_the_other_goes_on() -> None:
    asked = request(3)
    known = await plain([asked])
    loaded, model, _ = sources(known)
    model.broken = True
    async with speculating(executor(), loaded) as running:
        [answer] = await ask(running.engine, replace(asked, speculation=running.spec("auto")))
        assert running.engine.stats().broken_sources == {"model"}
        loaded[0].drafter.slots.clear()  # type: ignore[attr-defined]  # nobody speaks to it any more
    assert answer.tokens == known[3] and answer.finish is not None and answer.finish.speculation is not None
    assert answer.finish.speculation.accepted_by["text"] > LENGTH / 4
    assert not answer.finish.speculation.drafted_by["model"]


async def test_choices_of_one_prompt_have_both() -> None:
    asked = replace(request(5), n=3)
    async with speculating(executor(), []) as running:
        expected = [one.tokens for one in await ask(running.engine, asked)]
    known = {5: expected[0]}  # right for the first choice alone
    loaded, _, _ = sources(known)
    async with speculating(executor(), loaded) as running:
        answers = await ask(running.engine, replace(asked, speculation=running.spec("auto")))
    assert [one.tokens for one in answers] == expected
    first = answers[0].finish.speculation if answers[0].finish is not None else None
    assert first is not None and first.drafted_by["model"] and first.drafted_by["text"]
