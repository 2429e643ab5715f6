"""An engine that speculates, over a table or a tiny model: test drafters, requests as the server would read them, whole
answers, and what every step drafted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from typing import Any

import torch
from torch import Tensor, nn

from engine.admission import QueueLimits
from engine.engine import Engine
from engine.executor import Drafting, StepResult
from engine.request import DecodeRequest, Finish, TokenScore
from engine.runners.torch.draft_model import DraftModel
from engine.runners.torch.executor import TorchExecutor
from engine.runners.torch.loader import LoadedModel, Sizes, check
from engine.scheduler import Scheduler, Work
from engine.settings import EngineSettings
from samplers.chain import resolve
from samplers.model_facts import NO_FACTS, ModelFacts
from samplers.rng import Noise, Stream
from spec_decode.contract import DRAFT_SOURCES, DraftAdmission, DraftPlan, DraftTree, LoadedSource
from spec_decode.cost_model import DraftCost, Latency
from spec_decode.drafters.draft_model import DraftModelSource
from spec_decode.drafters.source import BaseSource
from spec_decode.facts import SpecFacts, SpecOffer, sampler_class
from spec_decode.read import read_spec
from spec_decode.request import SpecRequest
from spec_decode.worth import Worth
from tests.engine.table_model import TableExecutor, look_up
from tests.engine.tiny_models import tiny_model

PAGE = 4
EXPENSIVE = 1e-3  # seconds; steps seem to take so long that drafts cost next to nothing
CHEAP = {64: Latency({1: EXPENSIVE, 512: 1.1 * EXPENSIVE})}


# ---- test drafters

Guess = Callable[["Writer", DraftPlan, Noise], DraftTree]


@dataclass
class Writer:
    """A choice as a drafter knows it."""

    stream: Stream
    admission: DraftAdmission
    text: list[int]  # prompt and output

    @property
    def output(self) -> list[int]:
        return self.text[self.admission.prompt_length :]


class ScriptedSource(BaseSource):
    """Drafts of a test; `drawing`: they may be drawn."""

    name = "scripted"
    branches = True
    ranks = True

    def __init__(self, drawing: bool = False) -> None:
        self.draws = drawing  # type: ignore[misc]


class Scripted:
    """A drafter that asks a function. It insists on what the contract promises to drafters."""

    def __init__(self, guess: Guess) -> None:
        self.guess = guess
        self.slots: dict[int, Writer] = {}
        self.kept: list[list[int]] = []  # outputs of choices that were finished

    def admit(self, slot: int, admission: DraftAdmission) -> None:
        assert slot not in self.slots
        self.slots[slot] = Writer(admission.stream, admission, list(admission.tokens))

    def commit(self, slot: int, tokens: Sequence[int]) -> None:
        self.slots[slot].text += tokens

    def fork(self, parent: int, child: int, stream: Stream) -> None:
        assert child not in self.slots
        known = self.slots[parent]
        self.slots[child] = Writer(stream, known.admission, known.text.copy())

    def free(self, slot: int, keep: bool = False) -> None:
        writer = self.slots.pop(slot)
        if keep:
            self.kept.append(writer.output)

    def propose(self, slots: Sequence[int], plans: Sequence[DraftPlan], noise: Noise) -> list[DraftTree]:
        assert len(set(slots)) == len(slots)
        trees = []
        for row, (slot, plan) in enumerate(zip(slots, plans, strict=True)):
            writer = self.slots[slot]
            assert noise.keys[row] == writer.stream.key and noise.choices[row] == writer.stream.choice
            assert noise.positions[row] == len(writer.output)
            tree = self.guess(writer, plan, noise[[row]])
            tree.check()
            assert len(tree.tokens) <= plan.max_nodes and max(tree.depths, default=0) <= plan.max_depth
            trees.append(tree)
        return trees


def scripted(guess: Guess, drawing: bool = False) -> LoadedSource:
    return LoadedSource(ScriptedSource(drawing), Scripted(guess))


def no_draft(writer: Writer, plan: DraftPlan, noise: Noise) -> DraftTree:
    return DraftTree.one_hot([], [])


def one_hot_chain(tokens: Sequence[int], plan: DraftPlan) -> DraftTree:
    kept = list(tokens[: min(plan.max_depth, plan.max_nodes)])
    return DraftTree.one_hot(kept, range(-1, len(kept) - 1))


def looked_up() -> list[LoadedSource]:
    """The sources that need no model."""
    return [
        LoadedSource(source, source.new_drafter())
        for source in DRAFT_SOURCES
        if not isinstance(source, DraftModelSource)
    ]


# ---- draft models


def sizes(max_seqs: int, num_pages: int = 400, max_rows: int = 256) -> Sizes:
    return Sizes(PAGE, num_pages, max_seqs, max_rows, 10**6)


def table_draft(table: Tensor, executor: TableExecutor, max_seqs: int, num_pages: int = 4000) -> LoadedSource:
    """The draft model of the engine, with a table in place of its forward pass. table: as the target's."""
    settings = EngineSettings(replay=False)
    tiny = check(tiny_model("llama", vocab_size=table.shape[-1], num_hidden_layers=1), settings)
    drafter = DraftModel(tiny, settings, executor.loaded, sizes(max_seqs, num_pages, 4096))
    drafter._heads = {
        name: changed(head, forward=lambda step: look_up(table, step)) for name, head in drafter._heads.items()
    }
    return LoadedSource(DraftModelSource(), drafter, DraftCost(Latency({1: 1e-9, 512: 1e-9}), per_depth=True))


# ---- engines


@dataclass
class Speculating:
    """A running engine."""

    engine: Engine
    executor: TorchExecutor
    scheduler: Scheduler
    steps: list[list[tuple[DecodeRequest, int, int, int]]] = field(default_factory=list)  # of each work: (request,
    # computed tokens, drafted nodes, choices that draw)

    @property
    def offer(self) -> SpecOffer:
        drafting = self.executor.drafting
        return SpecOffer(tuple(one.source for one in drafting.sources), max_depth=drafting.max_depth)

    def spec(self, value: Any, fields: Mapping[str, Any] = {}, seeded: bool = True) -> SpecRequest | None:
        """`spec_decode` of a request with these sampling fields, as the server reads it."""
        chain = resolve(dict(fields), self.executor.vocab_size, self.executor.facts)
        facts = SpecFacts(self.offer, greedy=chain.greedy, seeded=seeded, sampler=sampler_class(chain))
        found = read_spec(value, facts)
        return found if isinstance(found, SpecRequest) else None

    def drafted(self) -> int:
        """Nodes so far."""
        return sum(nodes for step in self.steps for _, _, nodes, _ in step)


def watch_steps(running: Speculating) -> None:
    """Record every step, and check pages before it."""
    executor, scheduler = running.executor, running.scheduler
    execute = executor.execute

    def recorded(works: list[Work]) -> StepResult:
        executor.check_integrity([*scheduler.running, *scheduler.idle])
        for work in works:
            if work.draft is not None:
                work.draft.check()
        running.steps.append(
            [(one.sequence.active.request, one.count, one.rows - one.count, len(one.draws)) for one in works]
        )
        return execute(works)

    executor.execute = recorded  # type: ignore[method-assign]


class Thinking(Worth):
    """Tests are about what is drafted, not about how long it takes here."""

    def thinks(self, requests: int) -> bool:
        return True


@contextlib.asynccontextmanager
async def speculating(
    executor: TorchExecutor, sources: Sequence[LoadedSource], max_batch_tokens: int = 256, max_depth: int = 16
) -> AsyncIterator[Speculating]:
    """Run an engine over this executor; at the end nobody may hold anything."""
    executor.drafting = Drafting(tuple(sources), CHEAP, executor.stack.forgetful, max_depth)
    slots = len(executor.stack._keys)
    scheduler = Scheduler(executor.pages, slots, max_batch_tokens, b"test")
    engine = Engine(executor, scheduler, QueueLimits(10**5, 10**6))
    engine._loop._speculation._worth = Thinking()
    running = Speculating(engine, executor, scheduler)
    watch_steps(running)
    try:
        yield running
    finally:
        await asyncio.to_thread(engine.close, 5.0)
    executor.check_integrity([])
    assert executor.pages.in_use == 0 and len(scheduler.free_slots) == slots
    for one in sources:
        if isinstance(one.drafter, Scripted):
            assert not one.drafter.slots
        if isinstance(one.drafter, DraftModel):
            one.drafter.check_integrity()
            assert one.drafter.model.pages.in_use == 0


def table_executor(table: Tensor, max_seqs: int = 64, num_pages: int = 4000, facts: ModelFacts = NO_FACTS) -> Any:
    return TableExecutor(table, max_seqs, num_pages, facts)


def tiny_executor(model: nn.Module, max_seqs: int = 12, num_pages: int = 400, max_rows: int = 256) -> TorchExecutor:
    """Pages of four tokens."""
    settings = EngineSettings(replay=False)
    with torch.inference_mode():
        return TorchExecutor(check(model, settings), sizes(max_seqs, num_pages, max_rows), replay=False)


def tiny_draft(model: nn.Module, target: LoadedModel, max_seqs: int = 12) -> LoadedSource:
    settings = EngineSettings(replay=False)
    drafter = DraftModel(check(model, settings), settings, target, sizes(max_seqs))
    return LoadedSource(DraftModelSource(), drafter, DraftCost(Latency({1: 1e-9, 512: 1e-9}), per_depth=True))


# ---- requests and answers


@dataclass
class Answer:
    """What one choice has got."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def end(self) -> Finish:
        """What does not depend on how tokens were guessed."""
        assert self.finish is not None
        return changed(self.finish, speculation=None)


async def ask(engine: Engine, request: DecodeRequest) -> list[Answer]:
    answers = [Answer() for _ in range(request.n)]
    async for output in engine.stream(request):
        for choice, delta in output.deltas.items():
            answer = answers[choice]
            assert answer.finish is None
            answer.tokens += delta.token_ids
            answer.logprobs += delta.logprobs
            answer.scores += delta.scores
            answer.finish = delta.finish
    return answers


async def ask_all(engine: Engine, requests: Sequence[DecodeRequest]) -> list[list[Answer]]:
    """All of them run together."""
    return list(await asyncio.gather(*[ask(engine, one) for one in requests]))


def assert_same(found: Answer, plain: Answer, exact: bool = True) -> None:
    """Tokens, their log-probabilities and how it ended; not exact: numbers may differ by what rounding does."""
    close = 0.0 if exact else 1e-3
    assert found.tokens == plain.tokens
    assert found.end == plain.end
    assert len(found.logprobs) == len(found.tokens) and len(found.scores) == len(plain.scores)
    torch.testing.assert_close(torch.tensor(found.logprobs), torch.tensor(plain.logprobs), atol=close, rtol=0)
    for one, other in zip(found.scores, plain.scores, strict=True):
        assert one.rank == other.rank
        assert [token for token, _ in (*one.top, *one.extra)] == [token for token, _ in (*other.top, *other.extra)]
        values = [[x.logprob, *(value for _, value in (*x.top, *x.extra))] for x in (one, other)]
        torch.testing.assert_close(torch.tensor(values[0]), torch.tensor(values[1]), atol=close, rtol=0)
