"""What sampling promises through the whole runner: padding is never drawn, and a sampler's bug stays its user's."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import torch

from engine.request import DecodeRequest, Finish, FinishReason
from engine.runners.torch.loader import check
from engine.runners.torch.runner import TorchRunner
from engine.settings import EngineSettings
from samplers.chain import resolve
from samplers.contract import Param
from samplers.model_facts import NO_FACTS, ModelFacts
from samplers.registry import STAGES
from samplers.stage import BaseStage, FixedState
from tests.engine.tiny_models import VOCABULARY, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = 30


class Choices:
    """Everything one request got."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: list[float] = []
        self.tops: list[tuple[tuple[int, float], ...]] = []
        self.prompt_tops: list[tuple[tuple[int, float], ...]] = []
        self.ends: dict[int, Finish] = {}


@contextlib.asynccontextmanager
async def running(known_ids: int | None = None, seed: int = 0) -> AsyncIterator[TorchRunner]:
    tokens = NO_FACTS if known_ids is None else ModelFacts([b"x"] * known_ids)
    settings = EngineSettings(page_size=4, max_seqs=8, max_batch_tokens=32, max_model_len=128)
    runner = TorchRunner(lambda: check(tiny_model("llama", seed), settings, tokens), settings)
    try:
        yield runner
    finally:
        await runner.close(1.0)


async def ask(runner: TorchRunner, name: str, fields: dict[str, Any], n: int = 1, **changes: Any) -> Choices:
    request = DecodeRequest(
        id=name,
        prompt_ids=(5, 6, 7, 8, 9),
        chain=resolve(fields, runner.vocab_size),
        seed=3,
        max_tokens=TOKENS,
        n=n,
        **changes,
    )
    got = Choices()
    async for output in runner.submit(request):
        for choice, delta in output.deltas.items():
            got.tokens.setdefault(choice, []).extend(delta.token_ids)
            got.logprobs += delta.logprobs
            got.tops += [score.top for score in delta.scores]
            if delta.finish is not None:
                got.ends[choice] = delta.finish
        if output.prompt_scores is not None:
            got.prompt_tops = [score.top for score in output.prompt_scores if score is not None]
    return got


@pytest.mark.parametrize("fields", [{"temperature": 2.0}, {"temperature": 0}, {"draw": "gumbel", "temperature": 2.0}])
def test_the_padded_tail_of_the_head_is_never_drawn_nor_listed(fields: dict[str, Any]) -> None:
    known = 20

    async def scenario() -> None:
        async with running(known) as runner:
            assert runner.vocab_size == known
            got = await ask(runner, "a", fields, logprobs=VOCABULARY, prompt_logprobs=VOCABULARY)
        assert len(got.tokens[0]) == TOKENS and max(got.tokens[0]) < known
        assert (len(got.tops), len(got.prompt_tops)) == (TOKENS, 4)
        for top in got.tops + got.prompt_tops:
            assert sorted(token for token, _ in top) == list(range(known))
            assert torch.tensor([value for _, value in top]).exp().sum().item() == pytest.approx(1, abs=1e-5)

    asyncio.run(scenario())


@pytest.mark.parametrize("first", [1, 3, 4, 5, 50, 69])
def test_the_end_of_a_prompt_is_scored_as_the_whole_prompt_is(first: int) -> None:
    prompt = tuple(torch.randint(VOCABULARY, (70,), generator=torch.Generator().manual_seed(1)).tolist())
    asked = DecodeRequest("a", prompt, resolve({}, VOCABULARY), seed=3, max_tokens=0, prompt_logprobs=2)

    async def scores(runner: TorchRunner, request: DecodeRequest) -> list[Any]:
        *_, last = [output async for output in runner.submit(request)]
        assert last.cached_tokens == (request.scored_from - 1) // 4 * 4 * (request.id == "b")
        return last.prompt_scores

    async def scenario() -> None:
        async with running() as runner:
            whole = await scores(runner, asked)
            end = await scores(runner, dataclasses.replace(asked, id="b", scored_from=first))
        assert end[:first] == [None] * first
        for one, other in zip(end[first:], whole[first:], strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [token for token, _ in one.top] == [token for token, _ in other.top]

    asyncio.run(scenario())


def test_a_tokenizer_larger_than_the_head_changes_nothing() -> None:
    async def scenario() -> None:
        async with running(VOCABULARY + 5) as runner:
            assert runner.vocab_size == VOCABULARY

    asyncio.run(scenario())


@pytest.fixture(params=["accept", "shape", "free"])
def buggy(request: pytest.FixtureRequest) -> Iterator[str]:
    def broken(*_: Any) -> Any:
        raise ValueError("injected")

    class State(FixedState):
        def admit(self, slot: int, admission: Any) -> None: ...

    class Buggy(BaseStage):
        name, order, params = "buggy", 1, (Param("buggy", float, 0.0),)

        def new_state(self, shape: Any) -> Any:
            if request.param in ("accept", "free"):
                setattr(State, request.param, broken)
            return State()

        def shape(self, logits: torch.Tensor, *_: Any) -> torch.Tensor:
            return logits[:, :5] if request.param == "shape" else logits + 0

    STAGES.register(Buggy)
    yield request.param
    del STAGES._items["buggy"]


def test_a_bug_in_one_requests_sampler_is_no_failed_step(buggy: str) -> None:
    async def scenario() -> None:
        async with running() as runner:
            alone = await ask(runner, "alone", {"temperature": 1.0}, n=3)
            for i in range(5):
                innocent, user = await asyncio.gather(
                    ask(runner, f"a{i}", {"temperature": 1.0}, n=3),
                    ask(runner, f"b{i}", {"temperature": 1.0, "buggy": 1.0}, n=3),
                )
                assert innocent.tokens == alone.tokens
                for end in user.ends.values():
                    if buggy == "free":
                        assert end.reason is FinishReason.LENGTH
                    else:
                        assert (end.error_code, end.message) == ("internal_error", "sampler 'buggy' failed")
                assert len(user.ends) == 3 and runner.health().ready
            stats = runner.stats()
            assert stats.slots_in_use == 0 and stats.kv_pages_in_use == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("fields", [{"frequency_penalty": 1.5, "repetition_penalty": 1.2}, {"draw": "gumbel"}])
def test_an_output_that_has_begun_goes_on_as_if_its_tokens_had_been_drawn(fields: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with running() as runner:
            whole = await ask(runner, "a", fields, n=3, min_tokens=4, stop_token_ids=frozenset({11, 12}))
            for choice, tokens in whole.tokens.items():
                for known in (1, 3):
                    request = {"first_choice": choice, "begun": tuple(tokens[:known]), "min_tokens": 4}
                    rest = await ask(runner, f"{choice}{known}", fields, stop_token_ids=frozenset({11, 12}), **request)
                    assert rest.tokens[0] == tokens[known:] and rest.ends[0] == whole.ends[choice]

    asyncio.run(scenario())
