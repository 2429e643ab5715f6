"""What goes wrong beside drafts, and who hears of it: NaN, drafters that raise, aborts, short memory, failed steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.executor import Failure, StepResult
from engine.request import DecodeRequest, FinishReason
from engine.runners.torch.executor import TorchExecutor
from engine.scheduler import Work
from samplers.chain import resolve
from spec_decode.contract import DraftTree
from tests.engine.speculating import (
    Answer,
    Guess,
    Speculating,
    ask,
    ask_all,
    one_hot_chain,
    scripted,
    speculating,
    tiny_draft,
    tiny_executor,
)
from tests.engine.tiny_models import VOCABULARY, tiny_model

LENGTH = 14
PROMPT = tuple(7 + i % 30 for i in range(14))
CHAIN = {"draft": "scripted", "verifier": "match", "num_tokens": 4}
TREE = {"draft": "scripted", "verifier": "match", "num_tokens": 4, "num_drafts": 2, "tree": {"max_nodes": 12}}
FIELDS: list[dict[str, Any]] = [{}, {"frequency_penalty": 0.3}, {"temperature": 0}]


def request(name: str, fields: dict[str, Any], n: int = 1, seed: int = 1, **more: Any) -> DecodeRequest:
    settings: dict[str, Any] = {"max_tokens": LENGTH} | more
    prompt = settings.pop("prompt", PROMPT)
    return DecodeRequest(name, prompt, resolve(fields, VOCABULARY), seed, n=n, **settings)


def model() -> torch.nn.Module:
    return tiny_model("llama", num_hidden_layers=2)


async def plain(*requests: DecodeRequest) -> list[list[Answer]]:
    async with speculating(tiny_executor(model()), []) as running:
        return await ask_all(running.engine, [replace(one, speculation=None) for one in requests])


def tokens_of(answers: list[Answer]) -> list[list[int]]:
    return [one.tokens for one in answers]


def right_then_wrong(answers: list[Answer], right: int) -> Guess:
    """So many tokens that will be said, others behind them."""

    def guess(writer: Any, plan: Any, noise: Any) -> DraftTree:
        ahead = answers[writer.stream.choice].tokens[len(writer.output) :][: plan.max_depth]
        return one_hot_chain([token if i < right else (token + 1) % VOCABULARY for i, token in enumerate(ahead)], plan)

    return guess


def trees(answers: list[Answer]) -> Guess:
    """A wrong token with a wrong child, and beside it what will be said: it has to be moved."""

    def guess(writer: Any, plan: Any, noise: Any) -> DraftTree:
        ahead = answers[writer.stream.choice].tokens[len(writer.output) :][: plan.max_depth]
        if len(ahead) < 3:
            return one_hot_chain(ahead, plan)
        wrong = [(token + 1) % VOCABULARY for token in ahead]
        return DraftTree.one_hot([wrong[0], ahead[0], wrong[1], ahead[1], ahead[2]], [-1, -1, 0, 1, 3])

    return guess


# ---- NaN


def spoil(executor: TorchExecutor, row: int) -> list[int]:
    """In the first step of five rows, the key of one of them turns into NaN in one layer, as often as the step is
    computed; returns the rows it has happened to."""
    write, spoilt = executor.pool.write, []

    def write_spoilt(layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        if layer == 0 and len(spoilt) < 2 and key.shape[2] == 5:
            spoilt.append(row)
            key = key.clone()
            key[..., row, :] = float("nan")
        write(layer, slots, key, value)

    executor.pool.write = write_spoilt  # type: ignore[method-assign]
    return spoilt


POISON = 63  # a token that the model has no numbers for


def poisoned() -> TorchExecutor:
    own = model()
    with torch.no_grad():
        own.get_input_embeddings().weight[POISON] = float("nan")  # type: ignore[operator]
    return tiny_executor(own)


@pytest.mark.parametrize("verifier", ["match", "rrs", "traversal"])
@pytest.mark.parametrize("fields", FIELDS, ids=str)
@pytest.mark.parametrize("way", [CHAIN, TREE], ids=["chain", "tree"])
async def test_nan_of_drafts_is_met_by_whoever_accepts_them_only(
    way: dict[str, Any], fields: dict[str, Any], verifier: str
) -> None:
    """Request 1 has it where its drafts are rejected, request 3 draws it. Requests 0, 1 and 2 start at regular
    distances, and 2 is so long that one view of their keys lets 0 reach all of 1."""
    masked, wanted = {**fields, "bad_words_ids": [[POISON]]}, {**fields, "logit_bias": {POISON: 3.5}}
    asked = [
        request(str(i), wanted if i == 3 else masked, seed=i, prompt=tuple(range(i, i + length)), max_tokens=9)
        for i, length in enumerate((5, 5, 22, 5, 8))
    ]
    async with speculating(poisoned(), []) as running:
        expected = await ask_all(running.engine, asked)
    drawn = len(expected[3][0].tokens)
    assert expected[3][0].end.error_code == "internal_error" and 1 < drawn < 9
    assert all(expected[i][0].end.reason is FinishReason.LENGTH for i in (0, 1, 2, 4))

    def guess(writer: Any, plan: Any, noise: Any) -> DraftTree:
        [of] = [i for i, one in enumerate(asked) if one.seed == writer.stream.key]
        ahead = [*expected[of][0].tokens[len(writer.output) :], 1, 1, 1]
        if of == 1 and way is TREE and plan.max_depth > 1:
            return DraftTree.one_hot([POISON, ahead[0], 1, POISON, ahead[1]], [-1, -1, 0, 1, 1])
        if of == 1:
            return one_hot_chain([ahead[0], POISON, 2], plan)
        return one_hot_chain(ahead[:5] if way is TREE else ahead[:3], plan)

    executor = poisoned()
    async with speculating(executor, [scripted(guess)]) as running:
        for i, one in enumerate(asked[:4]):
            used = verifier if i == 1 or fields.get("temperature") == 0 else "match"
            asked[i] = replace(one, speculation=running.spec(way | {"verifier": used}, fields))
        found = await ask_all(running.engine, asked)
        assert all(torch.isfinite(store).all() for store in (*executor.pool.keys, *executor.pool.values))
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one[0].end == other[0].end
        if i != 1 or verifier == "match" or "temperature" in fields:  # else the law alone is the same
            assert tokens_of(one) == tokens_of(other)


@pytest.mark.parametrize("verifier", ["match", "rrs", "traversal"])
@pytest.mark.parametrize("fields", FIELDS, ids=str)
async def test_rows_of_nan_behind_a_draft_that_is_not_taken_hurt_nobody(fields: dict[str, Any], verifier: str) -> None:
    executor = tiny_executor(model())
    forward, spoilt = executor.model.forward, []

    def spoiling(step: Any) -> torch.Tensor:
        logits = forward(step)
        if len(logits) == 5:
            spoilt.append(step.rows)
            logits = logits.clone()
            logits[2:] = float("nan")
        return logits

    executor.model.forward = spoiling  # type: ignore[assignment]
    wrong = scripted(lambda writer, plan, noise: one_hot_chain([0, 1, 2, 3], plan))
    masked = {**fields, "bad_words_ids": [[0]]}  # so that the first draft is never taken
    async with speculating(executor, [wrong]) as running:
        spec = running.spec(CHAIN | {"verifier": verifier}, masked)
        [found] = await ask(running.engine, request("a", masked, speculation=spec))
    assert len(spoilt) > 8 and found.end.reason is FinishReason.LENGTH and len(found.tokens) == LENGTH


@pytest.mark.parametrize("fields", FIELDS, ids=str)
@pytest.mark.parametrize(("row", "right"), [(0, 9), (1, 9), (4, 9), (1, 0), (4, 2)])
@pytest.mark.parametrize("cut", range(4))
async def test_nan_of_a_draft_does_not_outlive_its_request(
    row: int, right: int, cut: int, fields: dict[str, Any]
) -> None:
    """Wherever it lies in a page, and whether its row is the pending token's or that of a draft, accepted or not."""
    asked = request("a", fields, prompt=PROMPT[cut:])
    others = [request(f"b{i}", fields, seed=i, prompt=tuple(range(i, i + 9))) for i in range(3, 7)]
    expected, *rest = await plain(asked, *others)
    executor = tiny_executor(model(), num_pages=14)  # whatever is given back is soon used again
    async with speculating(executor, [scripted(right_then_wrong(expected, right))]) as running:
        spoilt = spoil(executor, row)
        [found] = await ask(running.engine, replace(asked, speculation=running.spec(CHAIN, fields)))
        accepted = row <= right
        assert len(spoilt) == 2 and found.end.error_code == ("internal_error" if accepted else None)
        assert found.tokens == expected[0].tokens[: 1 + row if accepted else None]
        assert all(torch.isfinite(store).all() for store in (*executor.pool.keys, *executor.pool.values))
        later = replace(asked, id="later", prompt_ids=(*asked.prompt_ids, *expected[0].tokens[:8]))
        [[again]] = await plain(later)
        assert (await ask(running.engine, later))[0].tokens == again.tokens
        for one, answers in zip(others, rest, strict=True):
            assert tokens_of(await ask(running.engine, one)) == tokens_of(answers)


async def test_choices_that_share_damaged_pages_go_on() -> None:
    """One of two choices with drafts reads NaN from a page of the prompt that both have."""
    asked = request("a", {}, n=2)
    [expected] = await plain(asked)
    executor = tiny_executor(model())
    execute = executor.execute
    steps = 0

    def spoilt(works: list[Work]) -> StepResult:
        nonlocal steps
        steps += 1
        result = execute(works)
        if steps == 3:  # as if the first one's rows alone had looked at the page
            mine = next(one for one in result.drawn if one.sequence.choice == 0)
            page = mine.sequence.branch.pages[0]
            with torch.inference_mode():
                executor.pool.keys[0][:, page * executor.pages.page_size] = float("nan")
            mine.tokens, mine.logprobs, mine.scores = [], [], []
            mine.failure = Failure("internal_error", "the model gave a logit that is not a number")
        return result

    executor.execute = spoilt  # type: ignore[method-assign]
    async with speculating(executor, [scripted(right_then_wrong(expected, 2))]) as running:
        found = await ask(running.engine, replace(asked, speculation=running.spec(CHAIN)))
        assert running.drafted() > 8 and running.engine.health().ready
    assert found[0].end.reason is FinishReason.ERROR
    assert found[1].tokens == expected[1].tokens and found[1].end.reason is FinishReason.LENGTH


# ---- drafters


@pytest.mark.parametrize("where", ["admit", "propose", "commit", "fork", "free"])
@pytest.mark.parametrize("when", [0, 3])
async def test_a_drafter_that_raises_is_left_alone(where: str, when: int) -> None:
    asked = [request(f"r{i}", {}, n=2, seed=i) for i in range(3)]
    expected = await plain(*asked)
    calls = 0
    source = scripted(right_then_wrong(expected[0], 2))
    honest = getattr(source.drafter, where)

    def raising(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == when + 1:
            raise RuntimeError("injected")
        return honest(*arguments, **more)

    setattr(source.drafter, where, raising)
    async with speculating(tiny_executor(model()), [source]) as running:
        spec = running.spec(CHAIN)
        found = await ask_all(running.engine, [replace(one, speculation=spec) for one in asked])
        again = await ask(running.engine, replace(asked[0], id="again", speculation=spec))
        assert running.engine.health().ready
        source.drafter.slots.clear()  # type: ignore[attr-defined]  # nobody told it of the last ones' end
    for one, other in zip([*found, again], [*expected, expected[0]], strict=True):
        assert tokens_of(one) == tokens_of(other)


@pytest.mark.parametrize(
    "nonsense",
    [
        lambda trees: trees[1:],
        lambda trees: [*trees, *trees],
        lambda trees: [DraftTree.one_hot([VOCABULARY], [-1]) for _ in trees],
        lambda trees: [DraftTree.one_hot([-1], [-1]) for _ in trees],
        lambda trees: [DraftTree.one_hot([1, 1], [1, -1]) for _ in trees],
    ],
)
async def test_a_drafter_that_proposes_no_drafts_is_left_alone(nonsense: Any) -> None:
    asked = [request(f"r{i}", {}, seed=i) for i in range(3)]
    expected = await plain(*asked)
    source = scripted(right_then_wrong(expected[0], 2))
    propose = source.drafter.propose
    source.drafter.propose = lambda *given: nonsense(propose(*given))  # type: ignore[method-assign]
    async with speculating(tiny_executor(model()), [source]) as running:
        spec = running.spec(CHAIN)
        found = await ask_all(running.engine, [replace(one, speculation=spec) for one in asked])
        assert running.engine.health().ready
        source.drafter.slots.clear()  # type: ignore[attr-defined]
    for one, other in zip(found, expected, strict=True):
        assert tokens_of(one) == tokens_of(other)


# ---- aborts


@pytest.mark.parametrize("way", [CHAIN, TREE], ids=["chain", "tree"])
@pytest.mark.parametrize("choice", [None, 0, 1])
async def test_an_abort_at_every_step_leaves_nothing_behind(way: Any, choice: int | None) -> None:
    asked, other = request("a", {}, n=3), request("b", {"frequency_penalty": 0.3}, n=2, seed=9)
    expected, unhurt = await plain(asked, other)
    guess = trees if way is TREE else lambda answers: right_then_wrong(answers, 2)
    for step in range(1, 9):
        executor = tiny_executor(model(), num_pages=40)
        async with speculating(executor, [scripted(guess(expected))]) as running:
            execute, seen = executor.execute, 0

            def aborting(
                works: list[Work],
                running: Speculating = running,
                execute: Callable[[list[Work]], StepResult] = execute,
                step: int = step,
            ) -> StepResult:
                nonlocal seen
                seen += 1
                if seen == step:
                    running.engine.abort("a", choice)
                return execute(works)

            executor.execute = aborting  # type: ignore[method-assign]
            spec = running.spec(way)
            first, second = await asyncio.gather(
                ask(running.engine, replace(asked, speculation=spec)),
                ask(running.engine, replace(other, speculation=running.spec({"draft": "scripted", "num_tokens": 2}))),
            )
        assert tokens_of(second) == tokens_of(unhurt)
        for at, (one, whole) in enumerate(zip(first, expected, strict=True)):
            assert one.tokens == whole.tokens[: len(one.tokens)]
            ended = FinishReason.ABORT if choice in (None, at) else FinishReason.LENGTH
            assert one.end.reason in (ended, FinishReason.LENGTH)
            assert one.end.reason is FinishReason.ABORT or one.tokens == whole.tokens


# ---- memory


@pytest.mark.parametrize(
    "way", [CHAIN, TREE, {"draft": "draft_model", "num_tokens": 3}], ids=["chain", "tree", "model"]
)
@pytest.mark.parametrize("pages", [9, 12, 17, 25])
async def test_short_pages_change_no_token(way: Any, pages: int) -> None:
    """Requests that do not fit together are preempted; drafts give way before anybody is."""
    asked = [request(f"r{i}", FIELDS[i % 2], n=2, seed=i, prompt=PROMPT[i:]) for i in range(4)]
    expected = await plain(*asked)
    executor = tiny_executor(model(), num_pages=pages)
    by_stream = {(i, c): one.tokens for i, own in enumerate(expected) for c, one in enumerate(own)}

    def guess(writer: Any, plan: Any, noise: Any) -> DraftTree:
        own = [Answer(by_stream[writer.stream.key, c]) for c in range(2)]
        return (trees if way is TREE else lambda answers: right_then_wrong(answers, 3))(own)(writer, plan, noise)

    draft = tiny_draft(tiny_model("llama", seed=4, num_hidden_layers=1), executor.loaded)
    async with speculating(executor, [scripted(guess), draft]) as running:
        found = await ask_all(
            running.engine, [replace(one, speculation=running.spec(way, FIELDS[i % 2])) for i, one in enumerate(asked)]
        )
        preempted = running.engine.stats().preemptions
        if pages == 9:
            assert preempted
    assert [tokens_of(one) for one in found] == [tokens_of(one) for one in expected]


async def test_drafts_give_way_when_pages_are_short() -> None:
    """A tree has more tokens than can become output: near the end there is no page for it."""
    asked = request("a", {}, prompt=PROMPT[:8], max_tokens=8)
    [expected] = await plain(asked)
    wrong = scripted(lambda writer, plan, noise: DraftTree.one_hot([1] * 10, [-1] * 10))
    executor = tiny_executor(model(), num_pages=1 + 4)  # as much as the request itself computes
    async with speculating(executor, [wrong]) as running:
        found = await ask(running.engine, replace(asked, speculation=running.spec(TREE)))
        assert tokens_of(found) == tokens_of(expected) and running.engine.stats().preemptions == 0
        drafted = [nodes for step in running.steps for _, _, nodes, _ in step]
        assert 0 in drafted[1:6] and 10 not in drafted


async def test_a_step_with_drafts_that_does_not_fit_the_device_comes_again_smaller() -> None:
    asked = [request(f"r{i}", FIELDS[i % 2], n=3, seed=i) for i in range(3)]
    expected = await plain(*asked)
    executor = tiny_executor(model())
    forward, failed = executor.model.forward, []

    def run_out(step: Any) -> torch.Tensor:
        if len(failed) < 4 and step.rows > 20:
            failed.append(step.rows)
            raise torch.OutOfMemoryError("injected")
        return forward(step)

    async with speculating(executor, [scripted(right_then_wrong(expected[0], 2))]) as running:
        executor.model.forward = run_out  # type: ignore[assignment]
        spec = running.spec(CHAIN)
        found = await ask_all(running.engine, [replace(one, speculation=spec) for one in asked])
    assert failed and [tokens_of(one) for one in found] == [tokens_of(one) for one in expected]


async def test_a_step_that_fails_takes_its_requests_and_nothing_else() -> None:
    asked = request("a", {}, n=3)
    [expected] = await plain(asked)
    executor = tiny_executor(model())
    async with speculating(executor, [scripted(right_then_wrong(expected, 2))]) as running:
        forward, calls = executor.model.forward, []

        def fail(step: Any) -> torch.Tensor:
            calls.append(step.rows)
            if len(calls) == 3:
                raise RuntimeError("injected")
            return forward(step)

        executor.model.forward = fail  # type: ignore[assignment]
        spec = running.spec(CHAIN)
        found = await ask(running.engine, replace(asked, speculation=spec))
        assert all(one.end.error_code == "internal_error" for one in found)
        again = await ask(running.engine, replace(asked, id="again", speculation=spec))
        assert tokens_of(again) == tokens_of(expected)
