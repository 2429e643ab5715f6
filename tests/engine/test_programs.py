"""Programs inside the engine: every row they get is that of their tokens, and nothing they hold outlives them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.request import DecodeRequest, Delta, FinishReason, Output
from engine.runners.torch.loader import check
from engine.runners.torch.runner import TorchRunner
from engine.settings import EngineSettings
from samplers.chain import resolve
from samplers.programs.branch import Branch, End, Mixture, Token
from samplers.programs.contract import PROGRAMS, BaseProgram, ProgramError, Run, Task
from tests.engine.tiny_models import VOCABULARY, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")
PROMPT = (5, 6, 7, 8, 9, 10, 11)
Row = Callable[[tuple[int, ...], dict[int, Mixture]], Tensor]


class Wanderer(BaseProgram):
    """Forks, cuts, mixes and forgets branches at random, and compares every row with the model's own."""

    name = "wanderer"

    def __init__(self, row: Row) -> None:
        self.row = row
        self.rounds = 8
        self.mixes = True

    def run(self, task: Task) -> Run:
        rng = random.Random(task.stream.key)
        live = [task.root]
        last: list[Token] = []
        for _ in range(self.rounds):
            asked = rng.sample(live, rng.randint(1, len(live)))
            rows = yield asked
            for branch, raw, best in zip(asked, rows.raw, rows.best(3), strict=True):
                expected = self.row((*task.prompt_ids, *branch.ids), branch.mixtures)
                torch.testing.assert_close(raw, expected, atol=2e-3, rtol=0)
                last = best
                self._grow(branch, best, rng, live)
            for branch in [branch for branch in live if branch.end is not None or rng.random() < 0.15]:
                if len(live) > 1:
                    live.remove(branch)
                    if rng.random() < 0.7:
                        branch.release()
                else:
                    branch.truncate(0)
        task.finish(0, last, End("length"), rounds=self.rounds)

    def _grow(self, branch: Branch, best: list[Token], rng: random.Random, live: list[Branch]) -> None:
        for token in best[1:]:
            if rng.random() < 0.4 and len(live) < 12:
                live.append(branch.fork())
                if rng.random() < 0.5:
                    live[-1].truncate(rng.randint(0, len(branch)))
                live[-1].push(token)
                if rng.random() < 0.3:  # a fork of what nobody has seen yet, which is then cut
                    live.append(live[-1].fork())
                    live[-2].truncate(rng.randint(0, len(live[-2])))
        if rng.random() < 0.2:
            branch.truncate(rng.randint(0, len(branch)))
        if self.mixes and rng.random() < 0.2 and len(branch) < 20:
            branch.mix(Mixture((best[0].id, best[1].id, best[2].id), (0.5, 0.25, 0.25)))
        elif rng.random() < 0.9:
            branch.push(best[0])


class Failing(BaseProgram):
    """Holds several branches and then fails as it is told."""

    name = "failing"

    def __init__(self, how: str) -> None:
        self.how = how

    def run(self, task: Task) -> Run:
        if self.how == "raises before it runs":
            raise RuntimeError("on purpose")
        return self._run(task)

    def _run(self, task: Task) -> Run:
        branches = [task.root]
        rows = yield branches
        branches += [task.root.fork().push(token) for token in rows.best(5)[0]]
        yield branches[1:]
        task.finish(0, branches[1].tokens, End("length"))
        match self.how:
            case "raises":
                raise RuntimeError("on purpose")
            case "refuses":
                raise ProgramError("nothing_there", "there is nothing there")
            case "asks for nothing":
                yield []
            case "asks for a released branch":
                branches[1].release()
                yield [branches[1]]
            case "ends in a way that there is not":
                task.finish(1, branches[2].tokens, End("eos"))
            case "reports what is no JSON":
                task.report["share"] = math.nan
            case "says what is no JSON":
                task.finish(1, branches[2].tokens, End("length"), share=math.inf)
            case "pushes what is no token":
                yield [branches[1].push(Token(VOCABULARY, 0.0, 0.0))]
            case "mixes what is no token":
                branches[1].mix(Mixture((0, -1), (0.5, 0.5)))
                yield [branches[1]]
            case "grows beyond the limit":
                for _ in range(task.limits.max_tokens):
                    branches[1].mix(Mixture((1, 2), (0.5, 0.5)))
                    yield [branches[1]]
            case "leaves a hole":
                task.finish(2, branches[2].tokens, End("length"))
            case "holds on":
                while True:
                    yield [branches[1].fork().push(branches[2].tokens[0])]


@contextlib.contextmanager
def registered(program: BaseProgram) -> Iterator[None]:
    PROGRAMS.register(program)
    try:
        yield
    finally:
        del PROGRAMS._items[program.name]


@contextlib.asynccontextmanager
async def running(model: nn.Module, **settings: Any) -> AsyncIterator[TorchRunner]:
    """A runner whose books are checked before every step and at the end."""
    given = dict(page_size=4, max_seqs=8, max_batch_tokens=32, max_model_len=128) | settings
    runner = TorchRunner(lambda: check(model, EngineSettings(**given)), EngineSettings(**given))
    pages, loop, execute = runner.executor.pages, runner.engine._loop, runner.executor.execute

    def checked(works: Any) -> Any:
        live = [sequence for active in loop._live.values() for sequence in active.sequences]
        runner.executor.check_integrity(live)
        held = {page for sequence in live if sequence.branch is not None for page in sequence.branch.pages}
        assert pages.in_use == len(held)
        return execute(works)

    runner.executor.execute = checked  # type: ignore[method-assign]
    try:
        yield runner
        await asyncio.sleep(0.05)
        assert pages.in_use == 0
        assert len(runner.scheduler.free_slots) == runner.scheduler.max_seqs
        assert not runner.scheduler.parked and not runner.scheduler.waiting
        stack = runner.executor.stack
        assert not any(scheduled.users for scheduled in stack._stages.values())
        assert not any(memory.users for memory in stack._memories._all.values())
        assert runner.health().ready
    finally:
        await runner.close(1.0)


def request(name: str, sampler: Any, seed: int = 0, **changes: Any) -> DecodeRequest:
    fields = sampler if isinstance(sampler, dict) else {"sampler": sampler}
    chain = resolve(fields, VOCABULARY)
    given = dict(seed=seed, max_tokens=60) | changes
    return DecodeRequest(id=name, prompt_ids=PROMPT, chain=chain, **given)


async def collect(runner: TorchRunner, asked: DecodeRequest) -> Output:
    whole = Output()
    async for output in runner.submit(asked):
        whole.absorb(output)
    return whole


def reference(model: nn.Module) -> Row:
    """The row behind tokens, some of them mixtures, by the model's own eager attention."""
    model.set_attn_implementation("eager")
    table = model.get_input_embeddings()

    @torch.inference_mode()
    def row(tokens: tuple[int, ...], mixtures: dict[int, Mixture]) -> Tensor:
        embeds = table(torch.tensor([tokens]))
        for at, mixture in mixtures.items():
            place = at + len(PROMPT)
            embeds[0, place] = torch.tensor(mixture.weights) @ table(torch.tensor(mixture.ids))
        return model(inputs_embeds=embeds, use_cache=False).logits[0, -1]

    return row


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(max_seqs=2, max_batch_tokens=8),
        dict(kv_bytes=20 * 4 * 4 * 2 * 2 * 16 * 4, max_model_len=64),  # 20 pages
    ],
    ids=["room", "two slots", "no memory"],
)
def test_rows_are_those_of_the_branches_whatever_is_forked_cut_mixed_or_dropped(
    kind: str, settings: dict[str, Any]
) -> None:
    async def run() -> None:
        wanderer = Wanderer(reference(tiny_model(kind)))
        with registered(wanderer):
            async with running(tiny_model(kind), **settings) as runner:
                longest = min(60, runner.max_model_len - len(PROMPT))
                plain = [request(f"p{i}", {}, i, max_tokens=longest) for i in range(3)]
                wandering = [request(f"w{i}", "wanderer", i, max_tokens=longest) for i in range(3)]
                alone = [await collect(runner, one) for one in plain]
                together = await asyncio.gather(*(collect(runner, one) for one in [*wandering, *plain]))
                for output in together[:3]:
                    finish = output.deltas[0].finish
                    assert finish is not None and finish.reason is FinishReason.LENGTH, finish
                    assert output.report is not None and output.report["forward_passes"] == wanderer.rounds
                for one, other in zip(alone, together[3:], strict=True):
                    assert one.deltas[0].token_ids == other.deltas[0].token_ids

    asyncio.run(run())


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("raises", "internal_error"), ("refuses", "nothing_there"), ("asks for nothing", "internal_error"),
        ("asks for a released branch", "internal_error"), ("leaves a hole", "internal_error"),
        ("ends in a way that there is not", "internal_error"), ("reports what is no JSON", "internal_error"),
        ("says what is no JSON", "internal_error"), ("pushes what is no token", "internal_error"),
        ("mixes what is no token", "internal_error"), ("grows beyond the limit", "internal_error"),
    ],
)  # fmt: skip
def test_a_program_that_fails_takes_nobody_with_it_and_leaves_nothing_behind(how: str, code: str) -> None:
    async def run() -> None:
        with registered(Failing(how)):
            async with running(tiny_model("llama")) as runner:
                plain = asyncio.create_task(collect(runner, request("plain", {}, 1)))
                failed = await collect(runner, request("failed", "failing", 1, n=4))
                assert failed.deltas[0].finish is not None
                assert failed.deltas[0].finish.reason is FinishReason.LENGTH  # what was finished stays finished
                codes = {_code(failed.deltas[choice]) for choice in (1, 3)}
                assert codes == {code}
                assert (await plain).deltas[0].finish.reason is FinishReason.LENGTH  # type: ignore[union-attr]

    asyncio.run(run())


def test_a_program_that_cannot_begin_fails_its_own_request_only() -> None:
    async def run() -> None:
        with registered(Failing("raises before it runs")):
            async with running(tiny_model("llama")) as runner:
                failed = await collect(runner, request("failed", "failing", 1, n=2))
                assert {_code(failed.deltas[choice]) for choice in (0, 1)} == {"internal_error"}
                plain = await collect(runner, request("plain", {}, 1))
                assert plain.deltas[0].finish.reason is FinishReason.LENGTH  # type: ignore[union-attr]

    asyncio.run(run())


def test_branches_that_wait_give_way_to_others() -> None:
    """More choices than the memory holds, and somebody plain beside them."""

    async def run() -> None:
        pages = dict(kv_bytes=20 * 4 * 4 * 2 * 2 * 16 * 4, max_model_len=64)
        async with running(tiny_model("llama"), **pages) as runner:
            eager = [{"name": "eager", "theta": -1.0}, {"name": "repetition_penalty", "repetition_penalty": 1.3}]
            asked = [
                request("many", {"sampler": eager}, 1, n=8, max_tokens=40),
                request("more", {"sampler": {"name": "beam", "beam_width": 6}}, 2, n=4, max_tokens=30),
                request("plain", {}, 3, max_tokens=40),
            ]
            outputs = await asyncio.wait_for(asyncio.gather(*(collect(runner, one) for one in asked)), 60)
            for one, output in zip(asked, outputs, strict=True):
                assert len(output.deltas) == one.n
                assert all(delta.finish.reason is FinishReason.LENGTH for delta in output.deltas.values())  # type: ignore[union-attr]

    asyncio.run(run())


def test_what_branches_share_is_no_hit_of_the_prefix_cache() -> None:
    async def run() -> None:
        async with running(tiny_model("llama"), max_seqs=2) as runner:
            asked = request("cold", {"sampler": {"name": "eager", "theta": -1.0}}, 1, n=6, max_tokens=8)
            assert (await collect(runner, asked)).cached_tokens == 0
            again = request("warm", {"sampler": {"name": "eager", "theta": -1.0}}, 1, n=6, max_tokens=8)
            assert (await collect(runner, again)).cached_tokens == 4  # whole pages of the prompt, less its last token

    asyncio.run(run())


def _code(delta: Delta) -> str | None:
    assert delta.finish is not None
    return delta.finish.error_code


def test_a_client_that_leaves_takes_its_branches_along() -> None:
    async def run() -> None:
        with registered(Failing("holds on")):
            async with running(tiny_model("llama")) as runner:
                outputs = runner.submit(request("left", "failing", 1, n=4))
                await anext(outputs)
                await asyncio.sleep(0.1)
                assert runner.executor.pages.in_use
                await outputs.aclose()  # type: ignore[attr-defined]
                await asyncio.sleep(0.1)

    asyncio.run(run())
