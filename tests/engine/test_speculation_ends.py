"""Where an output ends inside a draft: endings, limits, watches, rows without a token (T10, spec_decode.md 3.1.6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from engine.request import DecodeRequest, FinishReason, TokenScore
from samplers.chain import resolve
from samplers.contract import Param
from samplers.failures import CONSTRAINT_UNSATISFIABLE
from samplers.registry import STAGES
from samplers.stage import BaseStage
from spec_decode.contract import DraftTree
from tests.engine.speculating import (
    Answer,
    Guess,
    Speculating,
    ask,
    assert_same,
    one_hot_chain,
    scripted,
    speculating,
    table_draft,
    table_executor,
)

VOCABULARY, LENGTH = 16, 24
PROMPT = (3, 4, 5)
TABLE = 2.0 * torch.randn(40, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(5))
WAY = {"draft": "scripted", "verifier": "match", "num_tokens": 8}
FIELDS: list[dict[str, Any]] = [{}, {"frequency_penalty": 0.4}, {"temperature": 0}]


def request(fields: Mapping[str, Any], name: str = "a", **more: Any) -> DecodeRequest:
    settings: dict[str, Any] = {"n": 3, "logprobs": 2} | more
    return DecodeRequest(name, PROMPT, resolve(dict(fields), VOCABULARY), 5, LENGTH, **settings)


async def plain(asked: DecodeRequest) -> list[Answer]:
    async with speculating(table_executor(TABLE), []) as running:
        return await ask(running.engine, asked)


def all_right(answers: list[Answer]) -> Guess:
    """Drafts of what is going to be said, and of nonsense behind it."""
    return lambda writer, plan, noise: one_hot_chain(
        [*answers[writer.stream.choice].tokens[len(writer.output) :], *range(VOCABULARY)], plan
    )


async def check(fields: Mapping[str, Any], change: Callable[[list[Answer]], dict[str, Any]]) -> list[Answer]:
    """A request that ends somewhere gives the same, drafted for and not; and needs as few steps as it can."""
    long = await plain(request(fields))
    asked = request(fields, **change(long))
    expected = await plain(asked)
    for one, other in zip(long, expected, strict=True):
        one.tokens[: len(other.tokens)] = other.tokens
    async with speculating(table_executor(TABLE), [scripted(all_right(long))]) as running:
        found = await ask(running.engine, replace(asked, speculation=running.spec(WAY, fields)))
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
            assert one.finish is not None and one.finish.speculation is not None
            report = one.finish.speculation
            assert report.emitted == len(one.tokens) and report.steps <= 1 + -(-(len(one.tokens) - 1) // 9)
    return found


@pytest.mark.parametrize("fields", FIELDS, ids=str)
@pytest.mark.parametrize("place", range(2, 14))
async def test_an_ending_at_every_place_of_a_draft(place: int, fields: dict[str, Any]) -> None:
    def ending(answers: list[Answer]) -> dict[str, Any]:
        return {"eos_token_ids": frozenset({answers[0].tokens[place]}), "stop_token_ids": frozenset({15})}

    found = await check(fields, ending)
    assert found[0].end.reason is FinishReason.STOP and len(found[0].tokens) <= place + 1


@pytest.mark.parametrize("limit", range(1, 13))
async def test_the_limit_at_every_place_of_a_draft(limit: int) -> None:
    long = await plain(request({}))
    asked = replace(request({}), max_tokens=limit)
    async with speculating(table_executor(TABLE), [scripted(all_right(long))]) as running:
        found = await ask(running.engine, replace(asked, speculation=running.spec(WAY)))
    for one, other in zip(found, long, strict=True):
        assert one.tokens == other.tokens[:limit] and one.end.reason is FinishReason.LENGTH


@pytest.mark.parametrize("fields", FIELDS, ids=str)
@pytest.mark.parametrize("least", [1, 4, 7, 11, LENGTH])
async def test_endings_that_come_too_early(least: int, fields: dict[str, Any]) -> None:
    ids = frozenset({2, 6, 9})
    await check(fields, lambda answers: {"min_tokens": least, "eos_token_ids": ids})


@dataclass
class Fewer:
    """Ends its choice with its `last` token."""

    last: int
    reason: str = "seen_enough"
    seen: int = 0

    def feed(self, score: TokenScore) -> bool:
        self.seen += 1
        return self.seen == self.last


@pytest.mark.parametrize("last", [1, 2, 5, 9, 10, 14])
async def test_a_watch_sees_every_token_once_and_none_behind_its_end(last: int) -> None:
    found = await check({}, lambda answers: {"watch": lambda: Fewer(last)})
    assert all(len(one.tokens) == last and one.end.details["ended_early"] == "seen_enough" for one in found)


# ---- rows without a token


class Forbidding(BaseStage):
    """At output position `dead_end` nothing is allowed; `dead_end_with_nan`: nothing is a number there."""

    name, order, in_greedy = "dead_end", 1.5, True
    params = (Param("dead_end", int, -1, low=-1, high=99), Param("dead_end_with_nan", bool, False))

    def is_neutral(self, values: Mapping[str, Any]) -> bool:
        return bool(values["dead_end"] < 0)

    def shape(self, logits: torch.Tensor, params: Any, rows: Any, state: Any) -> torch.Tensor:
        dead = rows.positions == params["dead_end"]
        value = torch.where(params["dead_end_with_nan"] > 0, torch.nan, -torch.inf)
        return torch.where(dead[:, None], value[:, None], logits).float()


@pytest.fixture
def dead_ends() -> Any:
    STAGES.register(Forbidding)
    yield
    del STAGES._items["dead_end"]


@pytest.mark.usefixtures("dead_ends")
@pytest.mark.parametrize("nan", [False, True])
async def test_choices_that_masks_end_are_counted(nan: bool) -> None:
    async with speculating(table_executor(TABLE), []) as running:
        await ask(running.engine, request({"dead_end": 3, "dead_end_with_nan": nan}, n=2))
        await ask(running.engine, request({}, "b"))
        assert running.engine.stats().masked_rows == (0 if nan else 2)


@pytest.mark.usefixtures("dead_ends")
@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("verifier", ["match", "token", "block", "traversal"])
@pytest.mark.parametrize("more", [{}, {"presence_penalty": 0.3}], ids=str)
@pytest.mark.parametrize("place", [3, 5, 8])
async def test_a_dead_end_that_is_reached_ends_the_choice_as_without_drafts(
    verifier: str, more: dict[str, Any], place: int, nan: bool
) -> None:
    fields = {"dead_end": place, "dead_end_with_nan": nan, **more}
    expected = await plain(request(fields, n=1))
    assert expected[0].end.error_code == ("internal_error" if nan else CONSTRAINT_UNSATISFIABLE)
    executor = table_executor(TABLE)
    async with speculating(executor, [table_draft(TABLE, executor, 64)]) as running:  # of such drafts all are taken
        way = {"draft": "draft_model", "verifier": verifier, "num_tokens": 6}
        asked = replace(request(fields, n=4, logprobs=None), speculation=running.spec(way, fields))
        other = replace(request({}, "b", n=1, logprobs=None), speculation=running.spec(way))
        found = await ask(running.engine, asked)
        assert len((await ask(running.engine, other))[0].tokens) == LENGTH
    for one in found:
        assert len(one.tokens) == place and one.end == expected[0].end
    if verifier == "match":
        assert found[0].tokens == expected[0].tokens


@pytest.mark.usefixtures("dead_ends")
@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("verifier", ["match", "rrs", "traversal"])
@pytest.mark.parametrize("more", [{}, {"presence_penalty": 0.3}], ids=str)
async def test_a_dead_end_that_is_not_reached_changes_nothing(verifier: str, more: dict[str, Any], nan: bool) -> None:
    """Every draft looks as far, but the texts end before."""
    fields = {"dead_end": 9, "dead_end_with_nan": nan, **more}
    asked = replace(request(fields, eos_token_ids=frozenset({1, 2, 3, 4, 5, 6}), n=6))
    expected = await plain(asked)
    wrong = scripted(lambda writer, plan, noise: one_hot_chain([7, 8, 9, 10, 11, 12, 13, 14], plan))
    async with speculating(table_executor(TABLE), [wrong]) as running:
        way = WAY | {"verifier": verifier}
        found = await ask(running.engine, replace(asked, speculation=running.spec(way, fields)))
        assert running.drafted() > 8
    if verifier == "match":
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    assert sum(one.end.reason is FinishReason.STOP for one in found) > 3
    assert all(one.end.reason is FinishReason.STOP or len(one.tokens) == 9 for one in found)


async def test_tokens_that_are_masked_are_never_taken() -> None:
    """ILLEGAL nodes: their tokens cannot be drawn, and what is behind them is not looked at."""
    fields = {"allowed_token_ids": [1, 2, 3, 4], "presence_penalty": 0.2}
    for verifier in ("match", "rrs", "traversal"):
        wrong = scripted(
            lambda writer, plan, noise: (
                DraftTree.one_hot([9, 2, 1, 3, 12], [-1, -1, 0, 1, 3])
                if plan.max_depth > 2
                else DraftTree.one_hot([], [])
            )
        )
        async with speculating(table_executor(TABLE), [wrong]) as running:
            way = WAY | {"verifier": verifier, "num_drafts": 2}
            found = await ask(running.engine, request(fields, speculation=running.spec(way, fields)))
            assert running.drafted() > 0
        for one in found:
            assert len(one.tokens) == LENGTH and set(one.tokens) <= {1, 2, 3, 4}


async def test_statistics_of_engine_and_choices_agree() -> None:
    executor = table_executor(TABLE)
    async with speculating(executor, [table_draft(TABLE, executor, 64)]) as running:
        spec = running.spec({"draft": "draft_model", "num_tokens": 3})
        found = await ask(running.engine, request({}, speculation=spec))
        totals = await _settled(running)
        for name in ("steps", "drafted", "accepted", "emitted"):
            own = [getattr(one.finish.speculation, name) for one in found if one.finish is not None]
            assert sum(own) == getattr(totals, name)
        assert totals.drafted == running.drafted()


async def _settled(running: Speculating) -> Any:
    """The engine's totals once nothing runs."""
    for _ in range(200):
        totals = running.engine.stats().speculation
        if totals and not running.engine.stats().slots_in_use:
            [total] = totals.values()
            return total
        await asyncio.sleep(0.01)
    raise AssertionError("the engine did not come to rest")
