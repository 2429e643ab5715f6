"""An executor without a model: the next token is a hash of everything before it, so any slip shows in the text."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

from engine.admission import QueueLimits
from engine.engine import Engine
from engine.executor import Drafting, Drawn, Failure, OutOfDeviceMemory, StepResult
from engine.pages import Pages
from engine.request import DecodeRequest, TokenScore
from engine.scheduler import Scheduler, Work
from engine.sequence import Sequence
from samplers.chain import Chain, Item

VOCABULARY = 256
PLAIN = Chain((), Item("iid", {}), greedy=False)


def next_token(tokens: list[int], seed: int, choice: int) -> int:
    digest = hashlib.blake2b(struct.pack(f"<{len(tokens)}i2q", *tokens, seed, choice), digest_size=4).digest()
    return int.from_bytes(digest, "little") % VOCABULARY


def continuation(request: DecodeRequest, choice: int) -> list[int]:
    """What the fake model generates for a choice, computed without an engine."""
    tokens = list(request.prompt_ids)
    while len(tokens) - len(request.prompt_ids) < request.max_tokens:
        tokens.append(next_token(tokens, request.seed, choice))
        if tokens[-1] in request.eos_token_ids and len(tokens) - len(request.prompt_ids) > request.min_tokens:
            break
    return tokens[len(request.prompt_ids) :]


class FakeExecutor:
    """Keeps the tokens of every KV slot and reads them back before it draws, as attention would."""

    def __init__(self, num_pages: int, page_size: int, max_batch_tokens: int) -> None:
        self.pages = Pages(num_pages, page_size, contiguous=True)
        self.max_batch_tokens = max_batch_tokens
        self.memory: dict[int, int | None] = {}  # by slot; None stands for NaN
        self.slots: set[int] = set()
        self.batches: list[int] = []
        self.fail_on_step: set[int] = set()
        self.spoil_on_step: set[int] = set()  # the first sequence of these steps gets a NaN into its KV
        self.fitting = max_batch_tokens  # tokens of a step for which the device has memory
        self.steps = 0
        self.vocab_size, self.drafting = VOCABULARY, Drafting()

    def admit(self, sequence: Sequence) -> None:
        assert sequence.slot not in self.slots
        self.slots.add(sequence.slot)

    def tell(self, slot: int) -> dict[str, object]:
        return {}

    def free(self, slot: int) -> None:
        self.slots.remove(slot)

    def mend(self, sequence: Sequence) -> set[int]:
        slots = self.pages.slots(sequence.branch, 0, sequence.branch.length).tolist()
        broken = [slot for slot in slots if self.memory[slot] is None]
        self.memory.update(dict.fromkeys(broken, 0))  # whoever reads it now is silently wrong
        return {slot // self.pages.page_size for slot in broken}

    def execute(self, works: list[Work]) -> StepResult:
        self.steps += 1
        if self.steps in self.fail_on_step:
            raise RuntimeError("injected")
        total = sum(work.count for work in works)
        assert 0 < total <= self.max_batch_tokens
        if total > self.fitting:
            raise OutOfDeviceMemory(f"{total} tokens")
        self.batches.append(total)
        size = self.pages.page_size
        copies = self.pages.drain_copies()
        moved = {b * size + i: self.memory.get(a * size + i) for a, b in copies for i in range(size)}
        self.memory.update(moved)
        result = StepResult()
        for work in works:
            sequence = work.sequence
            slots = self.pages.slots(sequence.branch, work.context, work.count).tolist()
            new = sequence.tokens[work.context : work.context + work.count]
            self.memory.update(zip(slots, new, strict=True))
            if self.steps in self.spoil_on_step and work is works[0]:
                self.memory[slots[0]] = None
            cached = self.pages.slots(sequence.branch, 0, work.context + work.count).tolist()
            seen = [self.memory[slot] for slot in cached]
            if None in seen:
                failure = Failure("internal_error", "the model gave a logit that is not a number")
                result.drawn += [Drawn(drawer, [], [], failure=failure) for drawer in work.draws]
                self.memory[slots[-1]] = None
                continue
            assert seen == sequence.tokens[: len(seen)]
            if sequence.active.prompt_scores is not None:
                first = max(work.context + 1, sequence.active.request.scored_from)
                last = min(work.context + work.count, sequence.prompt_length - 1)
                scores = [TokenScore(-float(t), 1, ()) for t in sequence.tokens[first : last + 1]]
                result.prompt_scores.append((sequence, first, scores))
            for drawer in work.draws:
                token = next_token(seen, sequence.active.request.seed, drawer.choice)
                result.drawn.append(Drawn(drawer, [token], [-1.0]))
        return result

    def check_integrity(self, live: list[Sequence]) -> None:
        self.pages.check_integrity([s.branch for s in live if s.branch is not None])


def fake_engine(
    num_pages: int = 64,
    page_size: int = 4,
    max_seqs: int = 8,
    max_batch_tokens: int = 32,
    queue: QueueLimits | None = None,
    on_fatal: Callable[[BaseException], None] | None = None,
) -> tuple[Engine, FakeExecutor, Scheduler]:
    executor = FakeExecutor(num_pages, page_size, max_batch_tokens)
    scheduler = Scheduler(executor.pages, max_seqs, max_batch_tokens, b"fake")
    limits = queue or QueueLimits(1000, 10**6)
    return Engine(executor, scheduler, limits, None, on_fatal), executor, scheduler


def request(name: str, prompt: list[int], max_tokens: int = 8, **changes: object) -> DecodeRequest:
    return DecodeRequest(id=name, prompt_ids=tuple(prompt), chain=PLAIN, seed=7, max_tokens=max_tokens, **changes)


async def collect(engine: Engine, asked: DecodeRequest) -> dict[int, list[int]]:
    """All tokens of every choice; asserts that each choice finished exactly once."""
    tokens: dict[int, list[int]] = {i: [] for i in range(asked.n)}
    finished = set()
    async for output in engine.stream(asked):
        for choice, delta in output.deltas.items():
            assert choice not in finished
            tokens[choice] += delta.token_ids
            if delta.finish is not None:
                finished.add(choice)
    assert finished == set(range(asked.n)) or asked.max_tokens == 0
    return tokens
