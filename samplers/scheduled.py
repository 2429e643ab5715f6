"""A stage or draw in a stack, with everything it keeps per slot."""

from __future__ import annotations

import logging

import numpy as np

from samplers.contract import Admission, Draw, Shape, Stage, State
from samplers.memories import Memories
from samplers.parameters import SlotParameters
from samplers.stage import FixedState

log = logging.getLogger(__name__)


class Scheduled:
    """One stage with everything it keeps per slot."""

    def __init__(self, stage: Stage, shape: Shape, memories: Memories) -> None:
        self.stage = stage
        self.state = _state_of(stage, shape)
        self.memory = memories.of(stage.name, self.state)
        self.uses = np.zeros(shape.slots, bool)
        self.users = 0  # slots that use it: most stages have none, and are passed over without looking at rows
        self.parameters = SlotParameters(stage.params, shape.slots, shape.device)


class Drawing:
    """One draw with everything it keeps per slot."""

    def __init__(self, draw: Draw, shape: Shape, memories: Memories) -> None:
        self.draw = draw
        self.state = _state_of(draw, shape)
        self.memory = memories.of(draw.name, self.state)
        self.parameters = SlotParameters(draw.params, shape.slots, shape.device)


def _state_of(owner: Stage | Draw, shape: Shape) -> State | None:
    """The owner's state. One that cannot be made fails the requests that use it, not everybody's server."""
    try:
        return owner.new_state(shape)
    except Exception:
        log.exception("sampler '%s' cannot be set up", owner.name)
        return _Missing(owner.name)


class _Missing(FixedState):
    """Stands for a state that could not be made."""

    def __init__(self, name: str) -> None:
        self._name = name

    def admit(self, slot: int, admission: Admission) -> None:
        raise RuntimeError(f"sampler '{self._name}' could not be set up")

    def fork(self, parent: int, child: int) -> None:
        """No slot is ever admitted."""
