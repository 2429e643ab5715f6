"""Runs the chains of all requests of a step at once: each stage once over the rows that use it.

Owns the per-slot parameters and states. Knows nothing about requests, pages or models. No loop over rows.
A stage, state or draw that raises or returns nonsense ends the rows that use it and nobody else's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers.argmax import peaks
from samplers.batch import Batch, Share, left
from samplers.chain import Chain, Item
from samplers.contract import Admission, Rows, Shape
from samplers.failures import Failures, emptied, failed, guarded, rows_of, tokens_of
from samplers.memories import Memories, Slots, Snapshot
from samplers.model_facts import NO_FACTS, ModelFacts
from samplers.recorder import Recorder
from samplers.registry import DRAWS, STAGES
from samplers.rng import GROUP_CHOICE, DrawBits, Noise, Stream
from samplers.sampled import Sampled, joined
from samplers.scheduled import Drawing, Scheduled

log = logging.getLogger(__name__)
_CACHED = 2**20  # elements of rows that a chain is run over at a time on a CPU
_BATCHES = 64  # combinations of slots that are kept; trees of drafts ask for many
FIXED, GREEDY = 0, 0  # order 0: the documented one; draw 0: argmax


class SamplerStack:
    """Per-slot chains and their batched execution."""

    def __init__(self, slots: int, vocab: int, device: torch.device, model: ModelFacts = NO_FACTS) -> None:
        self.device = device
        self._vocab = vocab
        shape = Shape(slots, vocab, device, model)
        self._memories = Memories(slots)
        by_order = sorted(STAGES, key=lambda stage: stage.order)
        self._stages = {stage.name: Scheduled(stage, shape, self._memories) for stage in by_order}
        self._draws = [Drawing(draw, shape, self._memories) for draw in DRAWS]
        self._draw_of = np.zeros(slots, np.int64)  # GREEDY or 1 + index into _draws
        # orders that clients chose are kept while a slot uses them, so there are never more than slots
        self._orders: list[tuple[str, ...]] = [tuple(self._stages)]
        self._order_of = np.zeros(slots, np.int64)  # FIXED or index into _orders
        self._keys = np.zeros(slots, np.int64)
        self._choices = np.zeros(slots, np.int64)
        self._stage_choices = np.zeros(slots, np.int64)  # the choice word of numbers that stages ask for
        self._draw_bits = DrawBits(slots)
        self._trace_of = np.zeros(slots, np.int64)  # candidates a trace lists; 0: not traced
        self._traced = 0  # slots that are: usually none, and then nothing else is looked at
        self._batches: dict[bytes, Batch] = {}  # by slots; none outlives a change to any slot

    def admit(
        self,
        slot: int,
        chain: Chain,
        *,
        seed: int,
        choice: int,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int] = (),
        ending_ids: frozenset[int] = frozenset(),
        min_tokens: int = 0,
        n: int = 1,
        trace: int = 0,
    ) -> None:
        """Fully overwrite a slot. seed: signed 64-bit; choice: 32-bit word; trace: candidates to list of each row,
        0: no trace. Raises whatever a state raises; the slot then has to be freed."""
        self.free(slot)
        stream = Stream(seed, choice)
        # a model may name an ending that its vocabulary lacks; that one is never drawn anyway
        ending_ids = frozenset(token for token in ending_ids if 0 <= token < self._vocab)

        def admission(values: Mapping[str, Any]) -> Admission:
            return Admission(values, prompt_ids, output_ids, ending_ids, min_tokens, stream, n)

        items = list(chain.stages)
        if min_tokens and ending_ids:
            items.append(Item("min_tokens", {}))
        for item in items:
            scheduled = self._stages[item.name]
            scheduled.uses[slot] = True
            scheduled.users += 1
            scheduled.parameters.write(slot, item.values)
            if scheduled.memory is not None:
                self._memories.admit(scheduled.memory, slot, admission(item.values))
        self._draw_of[slot] = GREEDY
        self._keys[slot], self._choices[slot], self._stage_choices[slot] = seed, choice, choice
        if not chain.greedy:
            index = [one.draw.name for one in self._draws].index(chain.draw.name)
            drawing = self._draws[index]
            self._draw_of[slot] = 1 + index
            drawing.parameters.write(slot, chain.draw.values)
            if drawing.memory is not None:
                self._memories.admit(drawing.memory, slot, admission(chain.draw.values))
            if drawing.draw.shared_noise:
                self._stage_choices[slot] = GROUP_CHOICE
        self._order_of[slot] = self._order(chain)
        self._draw_bits.forget(slot)
        self._trace(slot, trace)

    def fork(self, parent: int, child: int, *, seed: int | None = None, choice: int | None = None) -> None:
        """Copy a slot's parameters and states; a new stream where given."""
        self.free(child)
        for scheduled in self._stages.values():
            if scheduled.uses[parent]:
                scheduled.uses[child] = True
                scheduled.users += 1
                scheduled.parameters.copy(parent, child)
        self._memories.fork(parent, child)
        self._draw_of[child], self._order_of[child] = self._draw_of[parent], self._order_of[parent]
        if self._draw_of[child] != GREEDY:
            self._draws[self._draw_of[child] - 1].parameters.copy(parent, child)
        self._keys[child] = self._keys[parent] if seed is None else seed
        self._choices[child] = self._choices[parent] if choice is None else choice
        shared = self._stage_choices[parent] == GROUP_CHOICE
        self._stage_choices[child] = GROUP_CHOICE if shared else self._choices[child]
        self._draw_bits.forget(child)
        self._trace(child, int(self._trace_of[parent]))

    def free(self, slot: int) -> None:
        self._batches.clear()
        for scheduled in self._stages.values():
            if scheduled.uses[slot]:
                scheduled.uses[slot] = False
                scheduled.users -= 1
        self._memories.free(slot)
        self._order_of[slot] = FIXED
        if self._traced:
            self._trace(slot, 0)

    def accept(self, slots: Slots, tokens: Tensor) -> Failures:
        """Commit one token to each of these distinct slots. slots, tokens: [R]. Returns the rows that cannot go on."""
        self._memories.accept(slots, tokens)
        return self._broken_rows(slots)

    def snapshot(self, slot: int) -> Snapshot:
        """What `restore` needs to undo later accepts."""
        return self._memories.snapshot(slot)

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        self._memories.restore(slot, snapshot)

    def tell(self, slot: int) -> dict[str, Any]:
        """What the samplers of a slot say about the choice that ends there."""
        return self._memories.tell(slot)

    @property
    def forgetful(self) -> frozenset[str]:
        """Names of the stages and draws that remember nothing of the tokens."""
        stages = (name for name, one in self._stages.items() if one.memory is None or one.memory.fixed)
        draws = (one.draw.name for one in self._draws if one.memory is None or one.memory.fixed)
        return frozenset((*stages, *draws))

    def remembers(self, slot: int) -> bool:
        """Whether rows of this slot depend on tokens that it has accepted."""
        return self._memories.remembers(slot)

    def noise(self, slots: Slots, positions: Slots) -> Noise:
        """Random numbers of these slots' streams. slots, positions: [R]."""
        return Noise(self._keys[slots], self._choices[slots], positions)

    def law(self, logits: Tensor, slots: Slots, positions: Slots) -> tuple[Tensor, Failures]:
        """Shaped rows [R, V], and why nothing can be drawn from some of them. As `shape`."""
        processed, failures = self.shape(logits, slots, positions)
        self._note_empty(logits, processed, failures)
        return processed, failures

    def shape(self, logits: Tensor, slots: Slots, positions: Slots) -> tuple[Tensor, Failures]:
        """(processed rows [R, V], failures). logits: [R, V] fp32; slots, positions: [R] int64."""
        return self._shape(logits, self._batch(slots), slots, positions, None)

    def sample(self, logits: Tensor, slots: Slots, positions: Slots) -> Sampled:
        """Shape and draw. logits: [R, V] fp32; slots, positions: [R] int64."""
        count = len(slots)
        size = count if logits.device.type != "cpu" else max(1, _CACHED // logits.shape[1])
        if size >= count:
            return self._sample(logits, slots, positions)
        # whole chains over what fits into a processor's cache, which is up to three times as fast
        blocks = [slice(at, at + size) for at in range(0, count, size)]
        parts = [self._sample(logits[block], slots[block], positions[block]) for block in blocks]
        return joined(parts, [block.start for block in blocks])

    def _sample(self, logits: Tensor, slots: Slots, positions: Slots) -> Sampled:
        recorder = self._recorder(logits, slots) if self._traced else None
        batch = self._batch(slots)
        processed, failures = self._shape(logits, batch, slots, positions, recorder)
        tokens = self._draw(logits, processed, batch, positions, failures, recorder)
        if recorder is None:
            return Sampled(tokens, processed, failures)
        return Sampled(tokens, processed, failures, recorder.finish(tokens, processed, failures))

    def _shape(
        self, raw: Tensor, batch: Batch, slots: Slots, positions: Slots, recorder: Recorder | None
    ) -> tuple[Tensor, Failures]:
        """Apply the stages. `raw` is never written to."""
        failures = self._broken_rows(slots)
        logits = raw
        for scheduled, share in left(batch.stages, failures):
            rows, source = self._rows(share, self._stage_choices, positions, recorder), share.of(logits)
            shaped = guarded(
                lambda scheduled=scheduled, share=share, rows=rows, source=source: rows_of(
                    scheduled.stage.shape(source, share.params, rows, scheduled.state), source
                ),
                scheduled.stage.name,
                share.rows,
                failures,
            )
            if shaped is None:
                continue
            if recorder is not None:
                recorder.staged(scheduled.stage.name, share.rows, shaped)
            if share.index is None:
                logits = shaped
            else:
                if _share_memory(logits, raw):
                    logits = logits.clone()
                logits[share.index] = shaped
        return logits, failures

    def _draw(
        self,
        raw: Tensor,
        processed: Tensor,
        batch: Batch,
        positions: Slots,
        failures: Failures,
        recorder: Recorder | None,
    ) -> Tensor:
        """One token of each processed row; adds to `failures` the rows that have none."""
        tokens = self._note_empty(raw, processed, failures)
        for drawing, share in left(batch.draws, failures):
            picked = self._pick(drawing, share, raw, processed, positions, failures, recorder)
            if picked is None:
                continue
            if share.index is None:
                return picked
            tokens = tokens.clone()
            tokens[share.index] = picked
        return tokens

    @staticmethod
    def _note_empty(logits: Tensor, processed: Tensor, failures: Failures) -> Tensor:
        """Add to `failures` the rows from which nothing can be drawn; [R] the most probable token of each row."""
        best, highest = peaks(processed)
        finite = highest.abs() < torch.inf
        if not bool(finite.all()):
            for row in torch.nonzero(~finite).flatten().tolist():
                failures.setdefault(row, emptied(highest[row].item(), logits[row]))
        return best

    def _pick(
        self,
        drawing: Drawing,
        share: Share,
        raw: Tensor,
        processed: Tensor,
        positions: Slots,
        failures: Failures,
        recorder: Recorder | None,
    ) -> Tensor | None:
        """[r] tokens of the rows of a draw. raw, processed: [R, V]."""
        draw = drawing.draw
        own = share.of(raw) if draw.sees_raw else None
        rows = self._rows(share, self._choices, positions, recorder, own, ahead=True)
        source = share.of(processed)
        picked = guarded(
            lambda: tokens_of(draw.pick(source, share.params, rows, drawing.state), source),
            draw.name,
            share.rows,
            failures,
        )
        if picked is None:
            return None
        if recorder is not None:
            recorder.drew(draw.name, share.rows)
        inside = picked.clamp(0, source.shape[1] - 1)
        drawable = source.gather(1, inside.unsqueeze(1)).squeeze(1) > -torch.inf
        if not (bool(drawable.all()) and torch.equal(inside, picked)):
            wrong = share.rows[(~drawable | (inside != picked)).cpu().numpy()].tolist()
            log.error("draw '%s' picked tokens that are masked or do not exist, in %d rows", draw.name, len(wrong))
            failures.update(dict.fromkeys(wrong, failed(draw.name)))
        return inside

    def _rows(
        self,
        share: Share,
        choices: Slots,
        positions: Slots,
        recorder: Recorder | None,
        raw: Tensor | None = None,
        ahead: bool = False,
    ) -> Rows:
        """What a stage or draw is told about its rows. choices: the choice word of each slot's numbers; raw: [r, V];
        ahead: bits of the plain draw come from those made for many positions."""
        where = positions if share.index is None else positions[share.rows]
        keys, words = self._keys[share.slots], choices[share.slots]
        bits = (lambda: self._draw_bits(share.slots, keys, words, where)) if ahead else None
        noise = Noise(keys, words, where, bits)
        if recorder is not None:
            noise = recorder.noise(noise, share.rows)
        return Rows(share.device_slots, torch.from_numpy(where).to(self.device), noise, raw)

    def _batch(self, slots: Slots) -> Batch:
        """Which rows are whose; found out once while no slot changes."""
        key = slots.tobytes()
        batch = self._batches.get(key)
        if batch is None:
            if len(self._batches) >= _BATCHES:
                self._batches.clear()
            batch = self._batches[key] = self._new_batch(slots.copy())
        return batch

    def _new_batch(self, slots: Slots) -> Batch:
        stages, draws = [], []
        orders = self._order_of[slots]
        for order in np.unique(orders):
            members = np.flatnonzero(orders == order)
            for scheduled in (self._stages[name] for name in self._orders[order]):
                if scheduled.users and len(rows := members[scheduled.uses[slots[members]]]):
                    stages.append((scheduled, Share.among(slots, rows, scheduled.parameters, self.device)))
        drawn_by = self._draw_of[slots]
        for draw in np.unique(drawn_by):
            if draw != GREEDY:
                drawing, rows = self._draws[draw - 1], np.flatnonzero(drawn_by == draw)
                draws.append((drawing, Share.among(slots, rows, drawing.parameters, self.device)))
        return Batch(stages, draws)

    def _broken_rows(self, slots: Slots) -> Failures:
        broken = self._memories.broken
        if not broken:
            return {}
        return {row: failed(broken[slot]) for row, slot in enumerate(slots.tolist()) if slot in broken}

    def _trace(self, slot: int, top: int) -> None:
        self._traced += int(top > 0) - int(self._trace_of[slot] > 0)
        self._trace_of[slot] = top

    def _recorder(self, logits: Tensor, slots: Slots) -> Recorder | None:
        """A recorder of the traced rows, if there are any."""
        tops = self._trace_of[slots]
        rows = np.flatnonzero(tops)
        return Recorder(logits, dict(zip(rows.tolist(), tops[rows].tolist(), strict=True))) if len(rows) else None

    def _order(self, chain: Chain) -> int:
        if not chain.given_order:
            return FIXED
        order = ("min_tokens", *(item.name for item in chain.stages))
        if order in self._orders:
            return self._orders.index(order)
        unused = set(range(1, len(self._orders))) - set(self._order_of.tolist())
        if not unused:
            self._orders.append(order)
            return len(self._orders) - 1
        index = unused.pop()
        self._orders[index] = order
        return index


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
