"""Chains inside vLLM: rows of logits in, rows with one finite entry out, which vLLM's argmax then picks.

Both generations of vLLM's interface use it. Parameters, states and random numbers are those of the torch runner
(`samplers.stack`), so equal rows give equal tokens on both. Runs in vLLM's engine process.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from engine.runners.vllm.choice import Choice
from engine.runners.vllm.extras import ProcessorSetup
from engine.runners.vllm.reports import Report, ReportSender
from engine.runners.vllm.row_block import Place, RowBlock, opened
from samplers.sampled import Sampled
from samplers.stack import SamplerStack

log = logging.getLogger(__name__)
Tokens = Sequence[int]


class ChainCore:
    """The sampler states of choices, by slots of its own.

    A slot outlives its choice's place in vLLM's batch: states that do not follow from the tokens survive preemption.
    The slot that was used longest ago is given away; there have to be more of them than rows in a batch.
    """

    @torch.inference_mode()
    def __init__(
        self, setup: ProcessorSetup, device: torch.device, reports: ReportSender, block: RowBlock | None = None
    ) -> None:
        """block: where rows behind branches go; None: there are none."""
        self._vocab = setup.vocab_size
        self._stack = SamplerStack(setup.slots, setup.vocab_size, device, setup.facts)
        self._reports, self._block = reports, block
        self._free = list(range(setup.slots - 1, -1, -1))
        self._slot_of: dict[str, int] = {}  # by key of the choice; the one used longest ago comes first
        self._key_of = [""] * setup.slots
        self._begun: list[Tokens] = [()] * setup.slots
        self._places: list[Place | None] = [None] * setup.slots
        self._heard = np.zeros(setup.slots, np.int64)  # output tokens that the slot's states know of
        self._refused: dict[int, str] = {}  # slots whose parameters a sampler did not take

    @torch.inference_mode()
    def seat(self, choice: Choice, prompt_ids: Tokens, output_ids: Tokens) -> int:
        """The slot of a choice that enters the batch, or comes back to it with tokens that it has made before.

        prompt_ids: as vLLM has them, with the tokens that had begun the output at their end.
        """
        slot = self._slot_of.get(choice.key)
        output = (*choice.begun, *output_ids)
        known = slot is not None and self._heard[slot] <= len(output)
        if slot is None:
            slot = self._free.pop() if self._free else self._slot_of.pop(next(iter(self._slot_of)))
            self._slot_of[choice.key] = slot
        self._begun[slot], self._places[slot] = choice.begun, choice.place
        if known:  # what it has not heard of it is told before it draws
            return slot
        self._key_of[slot], self._heard[slot] = choice.key, len(output)
        self._refused.pop(slot, None)
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
            )
        except Exception:
            log.exception("choice %s cannot be admitted", choice.key)
            self._stack.free(slot)
            self._refused[slot] = "the sampler's parameters cannot be used"
        return slot

    @torch.inference_mode()
    def draw(self, logits: Tensor, seated: Mapping[int, tuple[int, Tokens]]) -> None:
        """Write what the chains draw into their rows: 0 at the token, -inf elsewhere.

        logits: [R, W] fp32 with W >= vocab_size, after vLLM's masks; seated: row -> (slot, output tokens so far). A row
        from which nothing can be drawn stays as it is, and is reported. May be called again for the same position.
        """
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
        self._catch_up(slots, outputs, positions)
        index = torch.tensor(rows, device=logits.device)
        # a copy: states keep rows until they hear which token was drawn, and these are written to below
        raw = logits[index, : self._vocab]
        sampled = self._stack.sample(raw, slots, positions)
        drawn = [at for at in range(len(rows)) if at not in sampled.failures]
        chosen = torch.tensor(drawn, dtype=torch.int64, device=logits.device)
        index, tokens = index[chosen], sampled.tokens[chosen]
        logits[index] = -torch.inf
        logits[index, tokens] = 0.0
        self._deliver(slots, raw, sampled)
        for at, (code, message) in sampled.failures.items():
            self._report(int(slots[at]), int(positions[at]), code, message)

    def _catch_up(self, slots: np.ndarray, outputs: Sequence[Tokens], positions: np.ndarray) -> None:
        """Tell the states of the tokens that were committed since, one per slot and call."""
        heard = self._heard
        while (behind := np.flatnonzero(heard[slots] < positions)).size:
            late = slots[behind]
            news = [self._token(slots[at], outputs[at], heard[slots[at]]) for at in behind]
            self._stack.accept(late, torch.tensor(news, device=self._stack.device))
            heard[late] += 1

    def _token(self, slot: int, output: Tokens, position: int) -> int:
        """The token at an output position of a choice."""
        begun = self._begun[slot]
        return begun[position] if position < len(begun) else output[position - len(begun)]

    def _deliver(self, slots: np.ndarray, raw: Tensor, sampled: Sampled) -> None:
        """Write the rows that somebody waits for. raw: [R, V]."""
        places = {at: place for at, slot in enumerate(slots) if (place := self._places[slot]) is not None}
        if not places:
            return
        assert self._block is not None
        wanted = torch.tensor(list(places), device=raw.device)
        both = torch.stack([raw[wanted], sampled.processed[wanted]], 1).cpu()  # [rows, 2, V]
        tokens = sampled.tokens[wanted].tolist()
        for (at, place), (own, shaped), token in zip(places.items(), both, tokens, strict=True):
            self._block.write(place, own, shaped, -1 if at in sampled.failures else token)

    def _report(self, slot: int, position: int, code: str, message: str) -> None:
        self._reports.send(Report(self._key_of[slot], position, code, message))


def connected(setup: ProcessorSetup, device: torch.device) -> ChainCore:
    """The core of an engine process, with its ways to the runner."""
    block = None if setup.rows is None else opened(setup.rows, setup.row_slots, setup.vocab_size)
    return ChainCore(setup, device, ReportSender(setup.reports), block)
