"""Executes one planned step: pages and rows in, drawn tokens and their log-probabilities out.

Owns the model, the KV pool and the sampler state of every slot. Runs in the engine thread; inference
mode is thread-local and entered here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.executor import Drawn, Failure, OutOfDeviceMemory, Row, StepResult
from engine.pages import Branch, Pages
from engine.request import DecodeRequest, TokenScore
from engine.runners.torch.attention import Backend
from engine.runners.torch.attention_cpu import CpuAttention
from engine.runners.torch.attention_plain import PlainAttention
from engine.runners.torch.forward import Forward
from engine.runners.torch.loader import LoadedModel, Sizes
from engine.runners.torch.packing import Chunk, order, pack
from engine.runners.torch.pool import KvPool
from engine.runners.torch.scores import candidate_scores, token_logprobs, token_scores
from engine.scheduler import Work
from engine.sequence import Sequence
from samplers.programs.rows import Rows
from samplers.stack import SamplerStack


class TorchExecutor:
    """Step-level half of the torch runner."""

    def __init__(self, loaded: LoadedModel, sizes: Sizes, attention: str = "auto", replay: bool = True) -> None:
        self.loaded = loaded
        self.facts, self.vocab_size = loaded.facts, loaded.vocab_size
        self.pages = Pages(sizes.num_pages, sizes.page_size, contiguous=loaded.device.type == "cpu")
        self.pool = KvPool(loaded.layers, sizes.num_pages, sizes.page_size, loaded.dtype, loaded.device)
        self.backend = make_backend(self.pool, loaded, attention)
        self.forward = Forward(loaded.model, self.backend)
        if replay and attention == "auto":
            if loaded.device.type == "cpu":
                self.forward.use_replay(loaded.layers)
            else:
                self.forward.use_graphs(sizes.max_seqs, loaded.max_model_len)
        self.stack = SamplerStack(sizes.max_seqs, loaded.vocab_size, loaded.device, loaded.facts)

    @torch.inference_mode()
    def admit(self, sequence: Sequence) -> None:
        """Write a sequence's sampling parameters into its slot."""
        request, family = sequence.active.request, sequence.active.family
        assert sequence.slot is not None
        self.stack.admit(
            sequence.slot,
            request.chain if family is None else family.chain,
            seed=sequence.stream.key,
            choice=sequence.stream.choice,
            prompt_ids=request.prompt_ids,
            output_ids=sequence.tokens[sequence.prompt_length :],
            ending_ids=request.eos_token_ids | request.stop_token_ids,
            min_tokens=request.min_tokens,
            n=request.n,
            trace=request.trace or 0,
        )
        sequence.heard = sequence.position

    def tell(self, slot: int) -> Mapping[str, Any]:
        return self.stack.tell(slot)

    def free(self, slot: int) -> None:
        self.stack.free(slot)

    def execute(self, works: list[Work]) -> StepResult:
        """Run the step."""
        try:
            return self._execute(works)
        except torch.OutOfMemoryError as error:
            raise OutOfDeviceMemory(str(error)) from error

    @torch.inference_mode()
    def _execute(self, works: list[Work]) -> StepResult:
        began = time.perf_counter()
        result = StepResult()
        copies = self.pages.drain_copies()
        if copies:
            self.pool.copy_pages(copies)
        works = [works[i] for i in order([work.sequence.branch for work in works])]
        scored, rows, drawers = self._wanted_rows(works)
        chunks = [
            Chunk(work.sequence.branch, work.context, ids) for work, ids in zip(works, self._inputs(works), strict=True)
        ]
        step = pack(self.pages, chunks, rows, self.loaded.device)
        built = time.perf_counter()
        logits = self.forward(step)[:, : self.loaded.vocab_size]  # a head may have more rows than there are tokens
        done = time.perf_counter()
        count = len(rows) - len(drawers)
        at = 0
        for work, first, number in scored:
            targets = work.sequence.tokens[first + 1 : first + 1 + number]
            top = work.sequence.active.request.prompt_logprobs or 0
            ids = torch.tensor(targets, device=logits.device)
            scores = token_scores(logits[at : at + number], ids, top)
            result.prompt_scores.append((work.sequence, first + 1, scores))
            at += number
        if drawers:
            self._draw(logits[count:].float().contiguous(), drawers, result)
        result.seconds = {"build": built - began, "forward": done - built, "sample": time.perf_counter() - done}
        return result

    def _inputs(self, works: list[Work]) -> list[list[int]]:
        """The input ids of every work: token ids, and those of the mixtures in their place."""
        inputs = [work.sequence.tokens[work.context : work.context + work.count] for work in works]
        places = [
            (ids, at - work.context, mixture)
            for work, ids in zip(works, inputs, strict=True)
            for at, mixture in work.sequence.mixtures.items()
            if work.context <= at < work.context + work.count
        ]
        if places:
            assert self.loaded.mixtures is not None
            placed = self.loaded.mixtures.place([mixture for _, _, mixture in places])
            for (ids, at, _), id_ in zip(places, placed, strict=True):
                ids[at] = id_
        return inputs

    def _wanted_rows(self, works: list[Work]) -> tuple[list[tuple[Work, int, int]], list[int], list[Sequence]]:
        """(prompt rows to score: (work, first position, number); rows of T with logits; who draws from the last)."""
        scored, rows, draw_rows, drawers = [], [], [], []
        start = 0
        for work in works:
            sequence = work.sequence
            scores = sequence.active.prompt_scores
            if scores is not None:
                first = max(work.context, sequence.active.request.scored_from - 1)
                last = min(work.context + work.count, sequence.prompt_length - 1)
                if first < last and None in scores[first + 1 : last + 1]:
                    scored.append((work, first, last - first))
                    rows += range(start + first - work.context, start + last - work.context)
            start += work.count
            draw_rows += [start - 1] * len(work.draws)
            drawers += work.draws
        return scored, rows + draw_rows, drawers

    def _draw(self, logits: Tensor, drawers: list[Sequence], result: StepResult) -> None:
        slots = np.array([sequence.slot for sequence in drawers])
        positions = np.array([sequence.position for sequence in drawers])
        self._tell([one for one in drawers if one.active.family is not None and one.heard < one.position])
        sampled = self.stack.sample(logits, slots, positions)
        raw = token_logprobs(logits, sampled.tokens)
        tokens, logprobs = sampled.tokens.tolist(), raw.tolist()
        drawn = [Drawn(*three) for three in zip(drawers, tokens, logprobs, strict=True)]
        for row, (code, message) in sampled.failures.items():
            drawn[row].failure = Failure(code, message)
        for row, trace in sampled.traces.items():
            drawn[row].trace = trace
        if any(sequence.active.request.logprobs is not None for sequence in drawers):
            self._score(logits, sampled.processed, sampled.tokens, drawn)
        plain = [i for i, one in enumerate(drawn) if one.failure is None and one.sequence.active.family is None]
        whole = len(plain) == len(drawn)
        mine, own = (slots, sampled.tokens) if whole else (slots[plain], sampled.tokens[plain])
        for row, (code, message) in (self.stack.accept(mine, own) if plain else {}).items():
            drawn[plain[row]].failure = Failure(code, message)
        result.drawn = drawn if whole else [one for one in drawn if one.sequence.active.family is None]
        result.rows = (
            []
            if whole
            else [
                Row(one.sequence, logits[i], sampled.processed[i], one.token, one.failure)
                for i, one in enumerate(drawn)
                if one.sequence.active.family is not None
            ]
        )

    def _tell(self, behind: list[Sequence]) -> None:
        """Let the sampler state of branches hear of the tokens that their program has pushed since."""
        while behind:
            slots = np.array([sequence.slot for sequence in behind])
            tokens = [sequence.tokens[sequence.prompt_length + sequence.heard] for sequence in behind]
            self.stack.accept(slots, torch.tensor(tokens, device=self.loaded.device))
            for sequence in behind:
                sequence.heard += 1
            behind = [sequence for sequence in behind if sequence.heard < sequence.position]

    @torch.inference_mode()
    def gather(self, request: DecodeRequest, rows: list[Row]) -> Rows:
        """The rows of a program's branches in one piece, in this order."""
        raw, shaped = torch.stack([row.raw for row in rows]), torch.stack([row.shaped for row in rows])
        drawn = [-1 if row.failure is not None else row.drawn for row in rows]

        def score(raw: Tensor, shaped: Tensor, ids: Tensor) -> list[list[TokenScore]]:
            source = shaped if request.processed_logprobs else raw
            return candidate_scores(source, ids, request.logprobs or 0, request.logprob_token_ids)

        return Rows(raw, shaped, drawn, None if request.logprobs is None else score)

    def _score(self, raw: Tensor, processed: Tensor, tokens: Tensor, drawn: list[Drawn]) -> None:
        """Fill in the scores that were asked for: one call per distinct question, not per request."""
        asked: dict[tuple[bool, int, tuple[int, ...]], list[int]] = {}
        for i, one in enumerate(drawn):
            request = one.sequence.active.request
            if request.logprobs is not None and one.sequence.active.family is None:
                question = (request.processed_logprobs, request.logprobs, request.logprob_token_ids)
                asked.setdefault(question, []).append(i)
        for (use_processed, top, extra), members in asked.items():
            source, own = processed if use_processed else raw, tokens
            if len(members) < len(drawn):
                source, own = source[members], own[members]
            scores = token_scores(source, own, top, extra)
            for i, score in zip(members, scores, strict=True):
                drawn[i].score = score

    @torch.inference_mode()
    def compact(self, branch: Branch, context: int, accepted: list[int]) -> None:
        """Keep the accepted rows of a computed tree (row 0 the pending token) and drop its other scratch slots."""
        source, target = self.pages.compact_slots(branch, context, accepted)
        if len(source):
            device = self.loaded.device
            self.pool.move(torch.from_numpy(source).to(device), torch.from_numpy(target).to(device))
        self.pages.truncate(branch, context + len(accepted))

    @torch.inference_mode()
    def mend(self, sequence: Sequence) -> set[int]:
        """Clear NaN and infinities out of a sequence's KV; returns the pages that held any."""
        if sequence.branch is None:
            return set()
        slots = self.pages.slots(sequence.branch, 0, sequence.branch.length)
        broken = self.pool.mend(torch.from_numpy(slots).to(self.loaded.device))
        return set((slots[broken.cpu().numpy()] // self.pages.page_size).tolist())

    def check_integrity(self, live: Many[Sequence]) -> None:
        """Raises `engine.pages.IntegrityError` when pages and sequences disagree."""
        self.pages.check_integrity([sequence.branch for sequence in live if sequence.branch is not None])


def make_backend(pool: KvPool, loaded: LoadedModel, attention: str) -> Backend:
    """The attention backend for the device; 'plain' is the slow reference."""
    if attention == "plain":
        return PlainAttention(pool)
    if loaded.device.type == "cpu":
        return CpuAttention(pool)
    from engine.runners.torch.attention_choice import choose  # its imports take a second that the CPU need not wait

    return choose(loaded.model, pool)
