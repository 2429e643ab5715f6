"""Chains inside vLLM: rows of logits in, rows with one finite entry out, which vLLM's argmax then picks.

Both generations of vLLM's interface use it. Parameters, states and random numbers are those of the torch runner
(`samplers.stack`), so equal rows give equal tokens on both. Runs in vLLM's engine process.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from engine.runners.vllm.choice import Choice
from engine.runners.vllm.extras import ProcessorSetup, setup_of
from engine.runners.vllm.reports import Account, Report, ReportSender
from engine.runners.vllm.row_block import Place, RowBlock, opened
from engine.scores import ScoreQuestion, asked_scores
from samplers.failures import Failures
from samplers.memories import Snapshot
from samplers.sampled import Sampled
from samplers.stack import SamplerStack

if TYPE_CHECKING:
    from vllm.config import VllmConfig

log = logging.getLogger(__name__)
Tokens = Sequence[int]
NO_DRAFTS: Mapping[int, Tokens] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Line:
    """The rows of one choice in a step: that of its next token, and one behind each draft."""

    slot: int
    row: int  # the first one; the others follow it
    position: int  # output tokens before the first row
    drafts: Tokens  # -1: vLLM had none to put there


@dataclass(frozen=True, slots=True)
class _Before:
    """A slot before its rows of a step were looked at."""

    heard: int
    states: Snapshot


class ChainCore:
    """The sampler states of choices, by slots of its own.

    Rows behind drafts are drawn one after the other, as long as what is drawn is what was drafted: vLLM accepts a draft
    exactly then, so the tokens are those of decoding without drafts. Of filtered choices vLLM decides which drafts it
    accepts, and their states wait until the tokens are in.

    A slot outlives its choice's place in vLLM's batch: states that do not follow from the tokens survive preemption.
    The slot that was used longest ago is given away; there have to be more of them than rows in a batch.
    """

    @torch.inference_mode()
    def __init__(
        self, setup: ProcessorSetup, device: torch.device, reports: ReportSender | None, block: RowBlock | None = None
    ) -> None:
        """reports: None: another process computes the same and says what there is to say; block: where rows behind
        branches go; None: nowhere."""
        self._vocab = setup.vocab_size
        self._stack = SamplerStack(setup.slots, setup.vocab_size, device, setup.facts)
        self._certain = torch.zeros((), device=device)  # the logit of what was drawn
        self._reports, self._block = reports, block
        self._free = list(range(setup.slots - 1, -1, -1))
        self._slot_of: dict[str, int] = {}  # by key of the choice; the one used longest ago comes first
        self._key_of = [""] * setup.slots
        self._begun: list[Tokens] = [()] * setup.slots
        self._places: list[Place | None] = [None] * setup.slots
        self._questions: list[ScoreQuestion | None] = [None] * setup.slots
        self._heard = np.zeros(setup.slots, np.int64)  # output tokens that the slot's states know of
        self._filtered = np.zeros(setup.slots, bool)  # vLLM draws, from the row that the stages leave
        self._before: dict[int, _Before] = {}  # slots with drafts in this step
        self._refused: dict[int, str] = {}  # slots whose parameters a sampler did not take
        self._said: list[Report | Account] = []  # by the current call

    @torch.inference_mode()
    def seat(self, choice: Choice, prompt_ids: Tokens, output_ids: Tokens, held: Collection[int] = ()) -> int:
        """The slot of a choice that enters the batch, or comes back to it with tokens that it has made before.

        prompt_ids: as vLLM has them, with the tokens that had begun the output at their end; held: slots that are in
        the batch, whether or not they were drawn from of late.
        """
        slot = self._slot_of.get(choice.key)
        output = (*choice.begun, *output_ids)
        known = slot is not None and self._heard[slot] <= len(output)
        if slot is None:
            slot = self._free.pop() if self._free else self._given_up(held)
        else:
            del self._slot_of[choice.key]
        self._slot_of[choice.key] = slot
        self._begun[slot], self._places[slot], self._questions[slot] = choice.begun, choice.place, choice.question
        if known:  # what it has not heard of it is told before it draws
            return slot
        self._key_of[slot], self._heard[slot] = choice.key, len(output)
        self._filtered[slot] = choice.filtered
        self._refused.pop(slot, None)
        self._before.pop(slot, None)
        try:
            self._stack.admit(
                slot,
                choice.chain,
                seed=choice.seed,
                choice=choice.number,
                prompt_ids=prompt_ids[: len(prompt_ids) - len(choice.begun)],
                output_ids=output,
                ending_ids=choice.ending_ids,
                min_tokens=choice.min_tokens,
                n=choice.n,
                trace=choice.trace,
            )
        except Exception:
            log.exception("choice %s cannot be admitted", choice.key)
            self._stack.free(slot)
            self._refused[slot] = "the sampler's parameters cannot be used"
        return slot

    def _given_up(self, held: Collection[int]) -> int:
        """The slot of the choice that was used longest ago and is not in the batch."""
        return self._slot_of.pop(next(key for key, slot in self._slot_of.items() if slot not in held))

    def begin_step(self) -> None:
        """vLLM has committed what came of the last step, which is not drawn again."""
        self._before.clear()

    @torch.inference_mode()
    def draw(
        self, logits: Tensor, seated: Mapping[int, tuple[int, Tokens]], drafts: Mapping[int, Tokens] = NO_DRAFTS
    ) -> None:
        """Write what the chains draw into their rows: 0 at the token, -inf elsewhere; of filtered choices the row that
        the stages leave.

        logits: [R, W] fp32 with W >= vocab_size, after vLLM's masks; seated: row -> (slot, output tokens so far);
        drafts: tokens that are guessed to follow, by the row before them; the rows behind them come next. A row from
        which nothing can be drawn stays as it is, and is reported; one that cannot be reached stays as it is. May be
        called again for the same positions, with other drafts too, until the next step begins.
        """
        self._draw(logits, seated, drafts)
        said, self._said = self._said, []
        if said and self._reports is not None:
            self._reports.send(said)

    def _draw(self, logits: Tensor, seated: Mapping[int, tuple[int, Tokens]], drafts: Mapping[int, Tokens]) -> None:
        rows = sorted(row for row, (slot, _) in seated.items() if slot not in self._refused)
        for slot, _ in seated.values():
            self._slot_of[self._key_of[slot]] = self._slot_of.pop(self._key_of[slot])
            if slot in self._refused:
                self._report(slot, 0, "internal_error", self._refused[slot])
        if not rows:
            return
        slots = np.array([seated[row][0] for row in rows])
        outputs = [seated[row][1] for row in rows]
        positions = np.array([len(self._begun[slot]) + len(out) for slot, out in zip(slots, outputs, strict=True)])
        self._go_back(slots, positions)
        self._catch_up(slots, outputs, positions)
        lines = [
            _Line(int(slot), row, int(position), drafts.get(row, ()))
            for row, slot, position in zip(rows, slots, positions, strict=True)
        ]
        for line in lines:
            if line.drafts:
                self._before[line.slot] = _Before(line.position, self._stack.snapshot(line.slot))
        filtered = [line for line in lines if self._filtered[line.slot]]
        self._draw_along(logits, [line for line in lines if not self._filtered[line.slot]])
        self._filter_along(logits, filtered)
        drafted = [line.slot for line in filtered if line.drafts]
        self._go_back(np.array(drafted, np.int64), np.array([self._before[slot].heard for slot in drafted], np.int64))

    def _draw_along(self, logits: Tensor, lines: list[_Line]) -> None:
        """Each line as far as its drafts are what is drawn; the states hear of them."""
        depth = 0
        while lines:
            slots, positions, index = _places(lines, depth, logits)
            # a copy: states keep rows until they hear which token was drawn, and these are written to below
            raw = logits[index, : self._vocab]
            sampled = self._stack.sample(raw, slots, positions)
            drawn = _without(sampled.failures, len(lines))
            where = _of(index, drawn)
            logits.index_fill_(0, where, -torch.inf)
            logits.index_put_((where, _of(sampled.tokens, drawn)), self._certain)
            self._deliver(slots, raw, sampled)
            self._explain(lines, depth, raw, sampled)
            self._report_all(lines, depth, sampled.failures)
            longer = [at for at in drawn if depth < len(lines[at].drafts)]
            if not longer:
                return
            tokens = sampled.tokens.tolist()
            lines = self._accepted(lines, [at for at in longer if tokens[at] == lines[at].drafts[depth]], depth)
            depth += 1

    def _filter_along(self, logits: Tensor, lines: list[_Line]) -> None:
        """Each line as far as its drafts are possible."""
        depth = 0
        while lines:
            slots, positions, index = _places(lines, depth, logits)
            shaped, failures = self._stack.law(logits[index, : self._vocab], slots, positions)
            alive = _without(failures, len(lines))
            where = _of(index, alive)
            logits.index_fill_(0, where, -torch.inf)
            logits[where, : self._vocab] = _of(shaped, alive)
            self._report_all(lines, depth, failures)
            longer = [at for at in alive if depth < len(lines[at].drafts) and lines[at].drafts[depth] >= 0]
            if not longer:
                return
            guessed = [lines[at].drafts[depth] for at in longer]
            possible = (shaped[longer, guessed] > -torch.inf).tolist()
            lines = self._accepted(lines, [at for at, can in zip(longer, possible, strict=True) if can], depth)
            depth += 1

    def _accepted(self, lines: list[_Line], which: list[int], depth: int) -> list[_Line]:
        """Tell the states of some of the lines of their drafts at this depth; those lines."""
        lines = [lines[at] for at in which]
        if lines:
            slots = np.array([line.slot for line in lines])
            self._stack.accept(slots, torch.tensor([line.drafts[depth] for line in lines], device=self._stack.device))
            self._heard[slots] += 1
        return lines

    def _go_back(self, slots: np.ndarray, positions: np.ndarray) -> None:
        """Undo what the states of slots have heard beyond these positions in this step."""
        if not self._before:
            return
        for slot in set(slots[self._heard[slots] > positions].tolist()) & self._before.keys():
            before = self._before[slot]
            self._stack.restore(slot, before.states)
            self._heard[slot] = before.heard

    def _catch_up(self, slots: np.ndarray, outputs: Sequence[Tokens], positions: np.ndarray) -> None:
        """Tell the states of the tokens that were committed since, one per slot and call."""
        lag = positions - self._heard[slots]
        while (behind := np.flatnonzero(lag > 0)).size:
            late = slots[behind]
            news = [self._token(slots[at], outputs[at], positions[at] - lag[at]) for at in behind]
            self._stack.accept(late, torch.from_numpy(np.array(news)).to(self._stack.device))
            self._heard[late] += 1
            lag -= 1

    def _token(self, slot: int, output: Tokens, position: int) -> int:
        """The token at an output position of a choice."""
        begun = self._begun[slot]
        return begun[position] if position < len(begun) else output[position - len(begun)]

    def _deliver(self, slots: np.ndarray, raw: Tensor, sampled: Sampled) -> None:
        """Write the rows that somebody waits for. raw: [R, V]."""
        places = {at: place for at, slot in enumerate(slots) if (place := self._places[slot]) is not None}
        if not places or self._block is None:
            return
        wanted = torch.tensor(list(places), device=raw.device)
        both = torch.stack([raw[wanted], sampled.processed[wanted]], 1).cpu()  # [rows, 2, V]
        tokens = sampled.tokens[wanted].tolist()
        for (at, place), (own, shaped), token in zip(places.items(), both, tokens, strict=True):
            self._block.write(place, own, shaped, -1 if at in sampled.failures else token)

    def _explain(self, lines: list[_Line], depth: int, raw: Tensor, sampled: Sampled) -> None:
        """Say what was asked about tokens drawn behind `depth` drafts. raw: [R, V]."""
        questions = [self._questions[line.slot] for line in lines]
        if not (any(questions) or sampled.traces):
            return
        scores = asked_scores(questions, raw, sampled.processed, sampled.tokens)
        for at, (line, score) in enumerate(zip(lines, scores, strict=True)):
            trace = sampled.traces.get(at)
            if at not in sampled.failures and (score, trace) != (None, None):
                self._said.append(Account(self._key_of[line.slot], line.position + depth, score, trace))

    def _report_all(self, lines: list[_Line], depth: int, failures: Failures) -> None:
        """failures: by index of the lines, of the rows behind `depth` drafts."""
        for at, (code, message) in failures.items():
            line = lines[at]
            self._report(line.slot, line.position + depth, code, message, tuple(line.drafts[:depth]))

    def _report(self, slot: int, position: int, code: str, message: str, after: tuple[int, ...] = ()) -> None:
        self._said.append(Report(self._key_of[slot], position, code, message, after))


def connected(config: VllmConfig, device: torch.device) -> ChainCore:
    """The core of an engine process, with its ways to the runner. Tensor-parallel ranks all draw the same; the first
    one gives vLLM's output, and says what else there is to say."""
    setup, parallel = setup_of(config), config.parallel_config
    if parallel.rank % parallel.tensor_parallel_size:
        return ChainCore(setup, device, None)
    block = None if setup.rows is None else opened(setup.rows, setup.row_slots, setup.vocab_size)
    return ChainCore(setup, device, ReportSender(setup.reports), block)


def _places(lines: list[_Line], depth: int, logits: Tensor) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """(slots, positions, rows of the logits) behind so many drafts."""
    rows = torch.from_numpy(np.array([line.row + depth for line in lines])).to(logits.device)
    return np.array([line.slot for line in lines]), np.array([line.position + depth for line in lines]), rows


def _without(failures: Failures, count: int) -> list[int]:
    """Which of so many rows have not failed."""
    return [at for at in range(count) if at not in failures]


def _of(rows: Tensor, which: list[int]) -> Tensor:
    """These rows, ascending; the tensor itself where that is all of them."""
    return rows if len(which) == len(rows) else rows[which]
