"""Registries: one dict and one decorator each; third parties register through entry points."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from samplers.contract import Draw, SamplerError, Stage

T = TypeVar("T")


class Registry(Generic[T]):
    """Named items of one kind."""

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self._group = group  # entry-point group, loaded on first use
        self._items: dict[str, T] = {}
        self._loaded = False

    def register(self, item: Any) -> Any:
        """Class decorator (or call) that adds `item()` under its `name` and returns the class."""
        instance = item() if isinstance(item, type) else item
        if instance.name in self._items:
            raise ValueError(f"{self.kind} '{instance.name}' is registered twice")
        self._items[instance.name] = instance
        return item

    def get(self, name: str, path: str | None = None) -> T:
        """The item. Raises SamplerError listing the known names."""
        self._load()
        if name not in self._items:
            known = ", ".join(sorted(self._items)) or "none"
            raise SamplerError(f"unknown {self.kind} '{name}'; known: {known}", path)
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._items

    def __iter__(self) -> Iterator[T]:
        self._load()
        return iter(list(self._items.values()))

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True
            for entry in entry_points(group=self._group):
                self.register(entry.load())


STAGES: Registry[Stage] = Registry("sampler stage", "drafthouse.samplers")
DRAWS: Registry[Draw] = Registry("draw", "drafthouse.draws")
