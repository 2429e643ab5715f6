"""Samples finish in any order and are looked at in index order: completion order would prefer short answers."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class InOrder(Generic[T]):
    """Holds back what has finished until everything before it has. Not thread-safe."""

    def __init__(self) -> None:
        self._held: dict[int, T] = {}
        self._next = 0

    def finish(self, index: int, item: T) -> list[T]:
        """What may be looked at now, in index order. Raises ValueError for an index that has finished already."""
        if index < self._next or index in self._held:
            raise ValueError(f"{index} has finished already")
        self._held[index] = item
        ready = []
        while self._next in self._held:
            ready.append(self._held.pop(self._next))
            self._next += 1
        return ready
