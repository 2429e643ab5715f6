"""Runs the chains of all requests of a step at once: each stage once over the rows that use it.

Owns the per-slot parameters and states. Knows nothing about requests, pages or models. No loop over rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samplers.argmax import lowest_argmax
from samplers.chain import Chain, Item
from samplers.contract import Admission, Draw, Param, Rows, Shape, Stage, State
from samplers.registry import DRAWS, STAGES
from samplers.rng import DrawBits, Noise

log = logging.getLogger(__name__)
Slots = npt.NDArray[np.int64]
FIXED, GREEDY = 0, 0  # order 0: the documented one; draw 0: argmax


@dataclass
class Sampled:
    """One token per row. A failed row's token means nothing."""

    tokens: Tensor  # [R] int64
    processed: Tensor  # [R, V] fp32, after the last stage
    failures: dict[int, tuple[str, str]] = field(default_factory=dict)  # row -> (code, message)


class _Parameters:
    """Scalar parameters of one stage or draw per slot: a host array and its device mirror."""

    def __init__(self, params: Sequence[Param], slots: int, device: torch.device) -> None:
        kinds = {float: np.float32, int: np.int64, bool: np.bool_}
        self._host = {p.name: np.full(slots, p.neutral, kinds[p.kind]) for p in params}
        # on CPU the mirror is the same memory, and a write needs no transfer
        self._device = {name: torch.from_numpy(array).to(device) for name, array in self._host.items()}
        self._same = device.type == "cpu"
        self._stale = False

    def write(self, slot: int, values: Any) -> None:
        for name, array in self._host.items():
            array[slot] = values[name]
        self._stale = not self._same

    def copy(self, parent: int, child: int) -> None:
        for array in self._host.values():
            array[child] = array[parent]
        self._stale = not self._same

    def gather(self, slots: Tensor) -> dict[str, Tensor]:
        if self._stale:
            for name, array in self._host.items():
                self._device[name].copy_(torch.from_numpy(array))
            self._stale = False
        return {name: mirror[slots] for name, mirror in self._device.items()}


class _Scheduled:
    """One stage with everything it keeps per slot."""

    def __init__(self, stage: Stage, shape: Shape) -> None:
        self.stage = stage
        self.uses = np.zeros(shape.slots, bool)
        self.users = 0  # slots that use it: most stages have none, and are passed over without looking at rows
        self.parameters = _Parameters(stage.params, shape.slots, shape.device)
        self.state: State | None = stage.new_state(shape)


class SamplerStack:
    """Per-slot chains and their batched execution."""

    def __init__(self, slots: int, vocab: int, device: torch.device) -> None:
        self._shape = Shape(slots, vocab, device)
        self._stages = {s.name: _Scheduled(s, self._shape) for s in sorted(STAGES, key=lambda s: s.order)}
        self._draws: list[Draw] = list(DRAWS)
        self._draw_parameters = [_Parameters(draw.params, slots, device) for draw in self._draws]
        self._draw_of = np.zeros(slots, np.int64)  # GREEDY or 1 + index into _draws
        self._orders: list[tuple[str, ...]] = [tuple(self._stages)]
        self._order_of = np.zeros(slots, np.int64)  # FIXED or index into _orders
        self._keys = np.zeros(slots, np.int64)
        self._choices = np.zeros(slots, np.int64)
        self._draw_bits = DrawBits(slots)

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
    ) -> None:
        """Fully overwrite a slot. seed: signed 64-bit; choice: 32-bit word."""
        self.free(slot)
        items = list(chain.stages)
        if min_tokens and ending_ids:
            items.append(Item("min_tokens", {}))
        for item in items:
            scheduled = self._stages[item.name]
            scheduled.uses[slot] = True
            scheduled.users += 1
            scheduled.parameters.write(slot, item.values)
            if scheduled.state is not None:
                scheduled.state.admit(slot, Admission(item.values, prompt_ids, output_ids, ending_ids, min_tokens))
        names = [draw.name for draw in self._draws]
        self._draw_of[slot] = GREEDY if chain.greedy else 1 + names.index(chain.draw.name)
        if not chain.greedy:
            self._draw_parameters[names.index(chain.draw.name)].write(slot, chain.draw.values)
        self._order_of[slot] = self._order(chain)
        self._keys[slot], self._choices[slot] = seed, choice
        self._draw_bits.forget(slot)

    def fork(self, parent: int, child: int, *, seed: int | None = None, choice: int | None = None) -> None:
        """Copy a slot's parameters and states; a new stream where given."""
        for scheduled in self._stages.values():
            if scheduled.uses[parent]:
                scheduled.parameters.copy(parent, child)
                if scheduled.state is not None:
                    scheduled.state.fork(parent, child)
            scheduled.users += int(scheduled.uses[parent]) - int(scheduled.uses[child])
            scheduled.uses[child] = scheduled.uses[parent]
        self._draw_of[child], self._order_of[child] = self._draw_of[parent], self._order_of[parent]
        if self._draw_of[child] != GREEDY:
            self._draw_parameters[self._draw_of[child] - 1].copy(parent, child)
        self._keys[child] = self._keys[parent] if seed is None else seed
        self._choices[child] = self._choices[parent] if choice is None else choice
        self._draw_bits.forget(child)

    def free(self, slot: int) -> None:
        for scheduled in self._stages.values():
            if scheduled.uses[slot]:
                scheduled.uses[slot] = False
                scheduled.users -= 1
                if scheduled.state is not None:
                    scheduled.state.free(slot)

    def accept(self, slots: Slots, tokens: Tensor) -> None:
        """Commit one token to each of these distinct slots. slots, tokens: [R]."""
        for scheduled in self._stages.values():
            if scheduled.state is None or not scheduled.users:
                continue
            used = scheduled.uses[slots]
            if used.any():
                chosen = torch.from_numpy(np.flatnonzero(used)).to(tokens.device)
                device_slots = torch.from_numpy(slots).to(tokens.device)
                scheduled.state.accept(device_slots[chosen], tokens[chosen])

    def snapshot(self, slot: int) -> dict[str, Any]:
        """What `restore` needs to undo later accepts."""
        return {
            name: scheduled.state.snapshot(slot)
            for name, scheduled in self._stages.items()
            if scheduled.uses[slot] and scheduled.state is not None
        }

    def restore(self, slot: int, snapshot: dict[str, Any]) -> None:
        for name, saved in snapshot.items():
            state = self._stages[name].state
            assert state is not None
            state.restore(slot, saved)

    def shape(self, logits: Tensor, slots: Slots, positions: Slots) -> tuple[Tensor, dict[int, tuple[str, str]]]:
        """(processed rows [R, V], failures). logits: [R, V] fp32; slots, positions: [R] int64."""
        failures: dict[int, tuple[str, str]] = {}
        orders = self._order_of[slots]
        if not orders.any():  # the common case: everybody runs in the documented order
            return self._run(logits, slots, positions, self._orders[FIXED], None, failures), failures
        for order in np.unique(orders):
            members = np.flatnonzero(orders == order)
            logits = self._run(logits, slots, positions, self._orders[order], members, failures)
        return logits, failures

    def sample(self, logits: Tensor, slots: Slots, positions: Slots) -> Sampled:
        """Shape and draw. logits: [R, V] fp32; slots, positions: [R] int64."""
        processed, failures = self.shape(logits, slots, positions)
        best = lowest_argmax(processed)
        peaks = processed.gather(1, best.unsqueeze(1)).squeeze(1)
        if not bool(torch.isfinite(peaks).all()):
            for row in torch.nonzero(~torch.isfinite(peaks)).flatten().tolist():
                failures.setdefault(row, _emptied(peaks[row].item()))
        draws = self._draw_of[slots]
        if not draws.any():
            return Sampled(best, processed, failures)
        tokens = best
        for draw in set(draws.tolist()) - {GREEDY}:
            rows = np.flatnonzero(draws == draw)
            rows = rows[[row not in failures for row in rows]] if failures else rows
            if len(rows):
                tokens = self._pick(int(draw) - 1, processed, tokens, rows, slots, positions, failures)
        return Sampled(tokens, processed, failures)

    def _pick(
        self,
        index: int,
        processed: Tensor,
        tokens: Tensor,
        members: Slots,
        slots: Slots,
        positions: Slots,
        failures: dict[int, tuple[str, str]],
    ) -> Tensor:
        whole = len(members) == len(slots)
        mine, where = (slots, positions) if whole else (slots[members], positions[members])
        device = processed.device
        rows = Rows(torch.from_numpy(mine).to(device), torch.from_numpy(where).to(device))
        keys, choices = self._keys[mine], self._choices[mine]
        noise = Noise(keys, choices, where, self._draw_bits(mine, keys, choices, where))
        source = processed if whole else processed[torch.from_numpy(members).to(device)]
        parameters = self._draw_parameters[index]
        picked = self._guard(
            lambda: self._draws[index].pick(source, parameters.gather(rows.slots), rows, noise),
            self._draws[index].name,
            members,
            failures,
        )
        if picked is None or whole:
            return tokens if picked is None else picked
        tokens = tokens.clone()
        tokens[torch.from_numpy(members).to(device)] = picked
        return tokens

    def _run(
        self,
        logits: Tensor,
        slots: Slots,
        positions: Slots,
        order: tuple[str, ...],
        among: Slots | None,
        failures: dict[int, tuple[str, str]],
    ) -> Tensor:
        """Apply the stages of one order to its rows; `among` None means all rows."""
        device = logits.device
        copied = False
        for name in order:
            scheduled = self._stages[name]
            if not scheduled.users:
                continue
            used = scheduled.uses[slots]
            if not used.any():
                continue
            members = np.flatnonzero(used) if among is None else among[used[among]]
            if failures:
                members = members[[row not in failures for row in members]]
            if not len(members):
                continue
            whole = len(members) == len(slots)
            mine, where = (slots, positions) if whole else (slots[members], positions[members])
            rows = Rows(torch.from_numpy(mine).to(device), torch.from_numpy(where).to(device))
            index = None if whole else torch.from_numpy(members).to(device)
            source = logits if index is None else logits[index]
            shaped = self._guard(
                lambda scheduled=scheduled, source=source, rows=rows: scheduled.stage.shape(
                    source, scheduled.parameters.gather(rows.slots), rows, scheduled.state
                ),
                name,
                members,
                failures,
            )
            if shaped is None:
                continue
            if index is None:
                logits, copied = shaped, True
            else:
                if not copied:  # the raw rows belong to the caller
                    logits, copied = logits.clone(), True
                logits[index] = shaped
        return logits

    @staticmethod
    def _guard(
        call: Callable[[], Tensor], name: str, members: Slots, failures: dict[int, tuple[str, str]]
    ) -> Tensor | None:
        """The call's result; an exception fails its rows only."""
        try:
            return call()
        except Exception:
            log.exception("sampler '%s' failed", name)
            for row in members.tolist():
                failures[row] = ("internal_error", f"sampler '{name}' failed")
            return None

    def _order(self, chain: Chain) -> int:
        if not chain.given_order:
            return FIXED
        order = ("min_tokens", *(item.name for item in chain.stages))
        if order not in self._orders:
            self._orders.append(order)
        return self._orders.index(order)


def _emptied(peak: float) -> tuple[str, str]:
    if peak == -np.inf:
        return "constraint_unsatisfiable", "the request's masks leave no token to draw"
    return "internal_error", "the model gave a logit that is not a number"
