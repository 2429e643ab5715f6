"""Turns the sampling fields of a request into one resolved, ordered chain of stages and a draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Item:
    """One resolved stage or draw with every parameter filled in."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Chain:
    """What a request samples with. `stages` holds only those that are not neutral, in executed order."""

    stages: tuple[Item, ...]
    draw: Item
    greedy: bool  # temperature below 1e-5: argmax after the stages that run in greedy mode

    def report(self) -> list[dict[str, Any]]:
        """The `drafthouse.sampler` value: executed items, every default filled in."""
        raise NotImplementedError


def resolve(fields: Mapping[str, Any], vocab_size: int) -> Chain:
    """The chain of a request's sampling fields. Raises SamplerError with the dotted path of the field."""
    raise NotImplementedError
