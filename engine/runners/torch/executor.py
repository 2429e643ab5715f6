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

from engine.executor import Drafting, Drawn, Failure, OutOfDeviceMemory, Row, StepResult
from engine.request import TokenScore
from engine.runners.torch.costs import plain_costs, verify_costs
from engine.runners.torch.loader import LoadedModel, Sizes
from engine.runners.torch.packing import Chunk, order
from engine.runners.torch.paged_model import PagedModel
from engine.runners.torch.verify_drafts import Drafted, DraftJudge
from engine.scheduler import Work
from engine.scores import ScoreQuestion, asked_scores, token_logprobs, token_scores
from engine.sequence import Sequence
from samplers.rng import Noise
from samplers.stack import SamplerStack
from spec_decode.acceptance import Verified
from spec_decode.contract import LoadedSource


class TorchExecutor:
    """Step-level half of the torch runner."""

    def __init__(self, loaded: LoadedModel, sizes: Sizes, attention: str = "auto", replay: bool = True) -> None:
        self.loaded = loaded
        self.facts, self.vocab_size = loaded.facts, loaded.vocab_size
        self.model = PagedModel(loaded, sizes, attention, replay)
        self.pages, self.pool = self.model.pages, self.model.pool
        self._max_seqs = sizes.max_seqs
        self.stack = SamplerStack(sizes.max_seqs, loaded.vocab_size, loaded.device, loaded.facts)
        self.drafting = Drafting()
        self._judge = DraftJudge(self.stack)

    def use_drafts(self, sources: Many[LoadedSource], max_depth: int, max_rows: int) -> None:
        """Let requests be drafted for. Measures steps, so nothing must be cached yet."""
        costs, plain = verify_costs(self.model, max_rows), plain_costs(self.model, self._max_seqs)
        self.drafting = Drafting(tuple(sources), costs, self.stack.forgetful, max_depth, plain)

    @torch.inference_mode()
    def admit(self, sequence: Sequence) -> None:
        """Write a sequence's sampling parameters into its slot."""
        request, family = sequence.active.request, sequence.active.family
        assert sequence.slot is not None
        self.stack.admit(
            sequence.slot,
            request.chain if family is None else family.run.chain,
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

    def noise(self, sequences: Many[Sequence]) -> Noise:
        """The random numbers of these sequences at the positions they draw for next."""
        slots = np.array([sequence.slot for sequence in sequences])
        return self.stack.noise(slots, np.array([sequence.position for sequence in sequences]))

    @torch.inference_mode()
    def execute(self, works: list[Work]) -> StepResult:
        """Run the step."""
        began = time.perf_counter()
        result = StepResult()
        works = [works[i] for i in order([work.sequence.branch for work in works])]
        scored, drawers, drafted, rows = self._wanted_rows(works)
        chunks = [_chunk(work, ids) for work, ids in zip(works, self._inputs(works), strict=True)]
        step = self.model.pack(chunks, rows)
        built = time.perf_counter()
        try:
            logits = self.model.logits(step)
        except torch.OutOfMemoryError as error:  # later ones would find sampler states that have moved on
            raise OutOfDeviceMemory(str(error)) from error
        done = time.perf_counter()
        at = 0
        for work, first, number in scored:
            targets = work.sequence.tokens[first + 1 : first + 1 + number]
            top = work.sequence.active.request.prompt_logprobs or 0
            ids = torch.tensor(targets, device=logits.device)
            scores = token_scores(logits[at : at + number], ids, top)
            result.prompt_scores.append((work.sequence, first + 1, scores))
            at += number
        drawing = logits[at:].float().contiguous()
        if drawers:
            self._draw(drawing[: len(drawers)], drawers, result)
        drawn = time.perf_counter()
        if drafted:
            self._verify(drawing, drafted, result)
        verified = time.perf_counter()
        result.seconds = {
            "build": built - began,
            "forward": done - built,
            "sample": drawn - done,
            "verify": verified - drawn,
        }
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

    def _wanted_rows(
        self, works: list[Work]
    ) -> tuple[list[tuple[Work, int, int]], list[Sequence], list[Drafted], list[int]]:
        """(prompt rows to score: (work, first position, number); who draws from a row; who has drafts, with their place
        among the rows that are drawn from; rows of T with logits: of the scored, of the drawers, of drafts)."""
        scored, rows, draw_rows, drawers = [], [], [], []
        drafted, draft_rows = [], []
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
            if work.draft is None:
                draw_rows += [start + work.count - 1] * len(work.draws)
                drawers += work.draws
            else:
                drafted.append(Drafted(sequence, work.draft, len(draft_rows)))
                draft_rows += range(start + work.count - 1, start + work.rows)
            start += work.rows
        for one in drafted:
            one.root += len(drawers)
        return scored, drawers, drafted, rows + draw_rows + draft_rows

    def _draw(self, logits: Tensor, drawers: list[Sequence], result: StepResult) -> None:
        slots = np.array([sequence.slot for sequence in drawers])
        positions = np.array([sequence.position for sequence in drawers])
        self._tell([one for one in drawers if one.active.family is not None and one.heard < one.position])
        sampled = self.stack.sample(logits, slots, positions)
        tokens, logprobs = sampled.tokens.tolist(), token_logprobs(logits, sampled.tokens).tolist()
        drawn = [Drawn(one, [token], [own]) for one, token, own in zip(drawers, tokens, logprobs, strict=True)]
        failures = dict(sampled.failures)
        for row, trace in sampled.traces.items():
            drawn[row].trace = trace
        asked = [None if one.active.family is not None else ScoreQuestion.of(one.active.request) for one in drawers]
        scores = asked_scores(asked, logits, sampled.processed, sampled.tokens)
        for one, score in zip(drawn, scores, strict=True):
            one.scores = [] if score is None else [score]
        plain = [i for i, one in enumerate(drawn) if i not in failures and one.sequence.active.family is None]
        whole = len(plain) == len(drawn)
        mine, own = (slots, sampled.tokens) if whole else (slots[plain], sampled.tokens[plain])
        for row, why in (self.stack.accept(mine, own) if plain else {}).items():
            failures[plain[row]] = why
        for row, (code, message) in failures.items():
            drawn[row] = Drawn(drawers[row], [], [], failure=Failure(code, message))
        for i, one in enumerate(drawn):
            if one.sequence.active.family is None:
                result.drawn.append(one)
            else:
                result.rows.append(Row(one.sequence, logits[i], sampled.processed[i], tokens[i], one.failure))

    def _verify(self, logits: Tensor, drafted: list[Drafted], result: StepResult) -> None:
        """Draw from the rows of drafts, and keep the KV of what is accepted. logits: [R, V] fp32."""
        judged = self._judge.judge(logits, drafted)
        rows = torch.tensor([row for one in judged for row in one.rows], dtype=torch.int64, device=logits.device)
        tokens = torch.tensor([token for one in judged for token in one.tokens], dtype=torch.int64)
        tokens = tokens.to(logits.device)
        logprobs: list[float] = []
        scores: list[TokenScore | None] = []
        if len(rows):
            raw = logits[rows]
            logprobs = token_logprobs(raw, tokens).tolist()
            asked = [ScoreQuestion.of(one.drafted.sequence.active.request) for one in judged for _ in one.tokens]
            shaped = raw
            if any(question is not None and question.processed for question in asked):
                shaped = torch.stack([rows[row] for one in judged for rows, row in one.shaped])
            scores = asked_scores(asked, raw, shaped, tokens)
        at = 0
        for one in judged:
            sequence, count = one.drafted.sequence, len(one.tokens)
            assert sequence.branch is not None
            drawn = Drawn(sequence, one.tokens, logprobs[at : at + count])
            drawn.scores = [score for score in scores[at : at + count] if score is not None]
            drawn.failure = None if one.failure is None else Failure(*one.failure)
            drawn.verified = Verified(tuple(one.drafted.tree.parents.tolist()), one.path, one.repaired)
            result.drawn.append(drawn)
            at += count
            context, kept = len(sequence.tokens) - 1, [0, *(1 + node for node in one.path)]
            if one.spoilt:  # what is kept is the loop's to distrust; the rest is out of reach in a moment
                scratch = self.pages.slots(sequence.branch, context, 1 + len(one.drafted.tree.tokens))
                self.pool.mend(torch.from_numpy(np.delete(scratch, kept)).to(logits.device))
            self.model.compact(sequence.branch, context, kept)

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


def _chunk(work: Work, ids: list[int]) -> Chunk:
    """What is computed for a work: its tokens, and the draft behind the last of them."""
    branch, draft = work.sequence.branch, work.draft
    if draft is None:
        return Chunk(branch, work.context, ids)
    ids = [*ids, *draft.tokens.tolist()]
    if draft.is_chain:
        return Chunk(branch, work.context, ids)
    assert work.count == 1
    return Chunk(branch, work.context, ids, draft.ancestry, np.append(0, draft.depths))
