"""Scalar parameters of one stage or draw, per request slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers.contract import Param

_KINDS = {float: np.float32, int: np.int64, bool: np.bool_, str: np.int64}


class SlotParameters:
    """A host array for each parameter and its device mirror; of a choice among strings, its index."""

    def __init__(self, params: Sequence[Param], slots: int, device: torch.device) -> None:
        self._choices = {param.name: param.choices for param in params if param.kind is str}
        self._host = {p.name: np.full(slots, self._number(p.name, p.neutral), _KINDS[p.kind]) for p in params}
        # on CPU the mirror is the same memory, and a write needs no transfer
        self._device = {name: torch.from_numpy(array).to(device) for name, array in self._host.items()}
        self._same = device.type == "cpu"
        self._stale = False

    def write(self, slot: int, values: Mapping[str, Any]) -> None:
        for name, array in self._host.items():
            array[slot] = self._number(name, values[name])
        self._stale = not self._same

    def _number(self, name: str, value: Any) -> Any:
        return self._choices[name].index(value) if name in self._choices else value

    def copy(self, parent: int, child: int) -> None:
        for array in self._host.values():
            array[child] = array[parent]
        self._stale = not self._same

    def gather(self, slots: Tensor) -> dict[str, Tensor]:
        """Every parameter of these slots: [R]. slots: [R] int64, device."""
        if self._stale:
            for name, array in self._host.items():
                self._device[name].copy_(torch.from_numpy(array))
            self._stale = False
        return {name: mirror[slots] for name, mirror in self._device.items()}
