"""The states of all stages, and which slots use them.

A state that raises must not harm anybody else: the slots it was called for are broken from then on, which ends
their requests, and everything else goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samplers.contract import Admission, State, Telling
from samplers.stage import FixedState

log = logging.getLogger(__name__)
Slots = npt.NDArray[np.int64]
_COMBINATIONS = 64  # of slots, of which it is kept who uses them


class Memory:
    """A state and the slots that use it, be it through one stage or several."""

    def __init__(self, name: str, state: State, slots: int) -> None:
        self.name, self.state = name, state
        self.uses = np.zeros(slots, bool)
        self.users = 0
        kind = type(state)
        # it is written at admission and depends on no token
        self.fixed = kind.accept is FixedState.accept and kind.snapshot is FixedState.snapshot


# a memory; its slots among some, for the host and for the device; and which of them these are, None: all
_Use = tuple[Memory, Slots, Tensor, Tensor | None]


@dataclass(frozen=True)
class Snapshot:
    """What undoes later accepts of one slot."""

    states: Mapping[int, Any]  # by identity of the state
    broken: str | None  # the sampler that had lost its state already


class Memories:
    """Every state of a stack."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._all: dict[int, Memory] = {}  # by identity of the state: stages may share one
        self._uses: dict[bytes, list[_Use]] = {}  # by slots
        self.broken: dict[int, str] = {}  # slot -> the sampler that lost its state

    def of(self, name: str, state: State | None) -> Memory | None:
        """Where the state of stage `name` is kept."""
        return None if state is None else self._all.setdefault(id(state), Memory(name, state, self._slots))

    def admit(self, memory: Memory, slot: int, admission: Admission) -> None:
        """Raises whatever the state raises; the slot then has to be freed."""
        if not memory.uses[slot]:  # another stage may have brought it in
            self._take(memory, slot)
            memory.state.admit(slot, admission)

    def fork(self, parent: int, child: int) -> None:
        for memory in self._all.values():
            if memory.uses[parent]:
                self._take(memory, child)
                with self._contained(memory, [child]):
                    memory.state.fork(parent, child)
        if parent in self.broken:
            self.broken[child] = self.broken[parent]

    def free(self, slot: int) -> None:
        for memory in self._all.values():
            if memory.uses[slot]:
                memory.uses[slot] = False
                memory.users -= 1
                self._uses.clear()
                with self._contained(memory, [slot]):
                    memory.state.free(slot)
        self.broken.pop(slot, None)  # whatever is left of its states, the next `admit` overwrites it

    def accept(self, slots: Slots, tokens: Tensor) -> None:
        """Commit one token to each of these distinct slots. slots, tokens: [R]."""
        for memory, mine, device_slots, chosen in self._of(slots, tokens.device):
            with self._contained(memory, mine):
                memory.state.accept(device_slots, tokens if chosen is None else tokens[chosen])

    def _of(self, slots: Slots, device: torch.device) -> list[_Use]:
        """Who has to hear of tokens of these slots; found out once while no slot changes."""
        key = slots.tobytes()
        uses = self._uses.get(key)
        if uses is None:
            if len(self._uses) >= _COMBINATIONS:
                self._uses.clear()
            uses = []
            for memory in self._all.values():
                if memory.users and not memory.fixed and len(rows := np.flatnonzero(memory.uses[slots])):
                    chosen = None if len(rows) == len(slots) else torch.from_numpy(rows).to(device)
                    uses.append((memory, slots[rows], torch.from_numpy(slots[rows]).to(device), chosen))
            self._uses[key] = uses
        return uses

    def remembers(self, slot: int) -> bool:
        """Whether some state of the slot depends on its tokens."""
        return any(memory.users and memory.uses[slot] and not memory.fixed for memory in self._all.values())

    def snapshot(self, slot: int) -> Snapshot:
        saved: dict[int, Any] = {}
        for key, memory in self._all.items():
            if memory.uses[slot]:
                with self._contained(memory, [slot]):
                    saved[key] = memory.state.snapshot(slot)
        return Snapshot(saved, self.broken.get(slot))

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """As often as needed. What a state failed at since is undone as well."""
        self.broken.pop(slot, None)
        if snapshot.broken is not None:
            self.broken[slot] = snapshot.broken
        for key, saved in snapshot.states.items():
            with self._contained(self._all[key], [slot]):
                self._all[key].state.restore(slot, saved)

    def tell(self, slot: int) -> dict[str, Any]:
        """What the slot's states say about the choice that ends there."""
        told: dict[str, Any] = {}
        for memory in self._all.values():
            if memory.uses[slot] and isinstance(memory.state, Telling):
                with self._contained(memory, [slot]):
                    told |= memory.state.tell(slot)
        return told

    def _take(self, memory: Memory, slot: int) -> None:
        if not memory.uses[slot]:
            memory.uses[slot] = True
            memory.users += 1
            self._uses.clear()

    @contextmanager
    def _contained(self, memory: Memory, slots: Iterable[int]) -> Iterator[None]:
        try:
            yield
        except Exception:
            log.exception("the state of sampler '%s' failed", memory.name)
            self.broken.update((int(slot), memory.name) for slot in slots)
