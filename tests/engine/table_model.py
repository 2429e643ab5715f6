"""A language model that is a table, behind the real executor, scheduler, engine and samplers.

The next token's logits depend on the last token and the position alone, so that the law of whole outputs can be
enumerated.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from engine.admission import QueueLimits
from engine.engine import Engine
from engine.executor import Drafting
from engine.pages import Pages
from engine.request import DecodeRequest, FinishReason
from engine.runners.torch.executor import TorchExecutor
from engine.runners.torch.paged_model import PagedModel
from engine.runners.torch.step import Step
from engine.runners.torch.verify_drafts import DraftJudge
from engine.scheduler import Scheduler
from samplers.chain import resolve
from samplers.model_facts import NO_FACTS, ModelFacts
from samplers.stack import SamplerStack

VOCABULARY = 4
END = 3  # ends an output
PROMPT = (1, 0, 1)
MAX_TOKENS = 3
Output = tuple[int, ...]
Law = dict[Output, float]
NextLaw = Callable[[Output], Sequence[float]]  # tokens so far -> probabilities of the next


def make_table(seed: int = 0, spread: float = 1.2) -> Tensor:
    """[positions, V, V] logits of the next token."""
    size = (len(PROMPT) + MAX_TOKENS, VOCABULARY, VOCABULARY)
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


class _NoMemory:
    """A KV pool that keeps nothing: the table looks at the last token only."""

    def copy_pages(self, copies: Any) -> None: ...

    def move(self, source: Tensor, target: Tensor) -> None: ...

    def mend(self, slots: Tensor) -> Tensor:
        return torch.zeros(len(slots), dtype=torch.bool)


def look_up(table: Tensor, step: Step) -> Tensor:
    """[R, V]: a forward pass."""
    rows = step.logit_rows
    return table[step.positions[rows], step.input_ids[rows]]


class TableModel(PagedModel):
    """A table in place of a loaded model."""

    def __init__(self, table: Tensor, pages: Pages, facts: ModelFacts) -> None:
        device = torch.device("cpu")
        size = {"vocab_size": table.shape[-1], "max_model_len": table.shape[0]}
        self.loaded: Any = SimpleNamespace(**size, device=device, facts=facts)
        self.pages = pages
        self.pool: Any = _NoMemory()
        self.forward: Any = lambda step: look_up(table, step)
        self.strict = None


class TableExecutor(TorchExecutor):
    """The torch executor with a table for a model."""

    def __init__(self, table: Tensor, max_seqs: int, num_pages: int, facts: ModelFacts = NO_FACTS) -> None:
        self.model = TableModel(table, Pages(num_pages, 2, contiguous=True), facts)
        self.loaded, self.pages, self.pool = self.model.loaded, self.model.pages, self.model.pool
        self.facts, self.vocab_size = facts, table.shape[-1]
        self.stack = SamplerStack(max_seqs, table.shape[-1], self.loaded.device, facts)
        self.drafting = Drafting()
        self._judge = DraftJudge(self.stack)


def table_engine(
    table: Tensor, max_seqs: int = 64, num_pages: int = 400, max_batch_tokens: int = 256
) -> tuple[Engine, Scheduler]:
    executor = TableExecutor(table, max_seqs, num_pages)
    scheduler = Scheduler(executor.pages, max_seqs, max_batch_tokens, b"table")
    return Engine(executor, scheduler, QueueLimits(10**5, 10**6)), scheduler


def request(fields: dict[str, Any], seed: int, n: int = 1) -> DecodeRequest:
    chain = resolve(fields, VOCABULARY)
    return DecodeRequest(f"{seed}", PROMPT, chain, seed, MAX_TOKENS, n=n, eos_token_ids=frozenset({END}))


async def outputs(engine: Engine, requests: Sequence[DecodeRequest]) -> list[list[Output]]:
    """The tokens of every choice of every request; all of them run together."""

    async def one(asked: DecodeRequest) -> list[Output]:
        tokens: list[list[int]] = [[] for _ in range(asked.n)]
        async for output in engine.stream(asked):
            for choice, delta in output.deltas.items():
                tokens[choice] += delta.token_ids
                assert delta.finish is None or delta.finish.reason is not FinishReason.ERROR, delta.finish
        return [tuple(one) for one in tokens]

    return list(await asyncio.gather(*map(one, requests)))


def enumerate_law(next_law: NextLaw) -> Law:
    """The probability of every whole output."""
    law: Law = {}
    growing: Law = {(): 1.0}
    while growing:
        output, chance = growing.popitem()
        for token, share in enumerate(next_law(output)):
            longer = (*output, token)
            if share > 0:
                done = token == END or len(longer) == MAX_TOKENS
                (law if done else growing)[longer] = chance * share
    return law


def all_outputs() -> Iterator[Output]:
    """Every whole output there could be."""
    for length in range(1, MAX_TOKENS + 1):
        for output in itertools.product(range(VOCABULARY), repeat=length):
            if END not in output[:-1] and (length == MAX_TOKENS or output[-1] == END):
                yield output


def counts(seen: Sequence[Output], law: Law) -> tuple[Tensor, Tensor]:
    """(counts, probabilities) of every output, in one order."""
    counted = Counter(seen)
    every = list(all_outputs())
    assert set(counted) <= set(every)
    return torch.tensor([counted[x] for x in every]), torch.tensor([law.get(x, 0.0) for x in every], dtype=torch.double)
