"""Registries: one dict and one decorator each; third parties register through entry points."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Generic, TypeVar

from samplers.contract import Draw, Param, SamplerError, Stage

log = logging.getLogger(__name__)
T = TypeVar("T")
RESERVED = frozenset({"name", "sampler", "sampler_order", "temperature_last", "draw"})  # fields of the chain itself


class Registry(Generic[T]):
    """Named items of one kind."""

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self._group = group  # entry-point group, loaded on first use
        self._items: dict[str, T] = {}
        self._loaded = False

    def register(self, item: Any) -> Any:
        """Class decorator (or call) that adds `item()` under its `name` and returns the class.

        Raises ValueError for what is no such item, or has a name or parameter that is taken.
        """
        instance = item() if isinstance(item, type) else item
        self._check(instance)
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

    def _check(self, item: Any) -> None:
        name = getattr(item, "name", None)
        if not isinstance(name, str) or not name:
            raise ValueError(f"{item!r} has no name")
        if name in self._items:
            raise ValueError(f"{self.kind} '{name}': the name is taken by {_origin(self._items[name])}")

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for entry in entry_points(group=self._group):
            known = dict(self._items)
            try:
                loaded = entry.load()
                if not any(one is loaded or type(one) is loaded for one in self._items.values()):  # decorated, too
                    self.register(loaded)
            except Exception as error:  # whatever a stranger's module does, the server starts
                self._items = known
                log.debug("entry point '%s' of %s failed", entry.name, self._group, exc_info=error)
                log.warning("%s is not available: %s: %s", _package(entry), type(error).__name__, error)


class ItemRegistry(Registry[T]):
    """What a chain's items may name: no name occurs twice among all registries of this kind."""

    _all: ClassVar[list[ItemRegistry[Any]]] = []

    def __init__(self, kind: str, group: str, methods: tuple[str, ...]) -> None:
        super().__init__(kind, group)
        self._methods = methods
        self._all.append(self)

    def _check(self, item: Any) -> None:
        super()._check(item)
        where = f"{self.kind} '{item.name}'"
        for registry in self._all:
            if item.name in registry._items:
                raise ValueError(f"{where}: the name is taken by {_origin(registry._items[item.name])}")
        missing = [method for method in self._methods if not callable(getattr(item, method, None))]
        if missing:
            raise ValueError(f"{where} lacks {', '.join(missing)}")
        params = getattr(item, "params", None)
        if not isinstance(params, tuple) or not all(isinstance(param, Param) for param in params):
            raise ValueError(f"{where}: params must be a tuple of Param")


class SamplerRegistry(ItemRegistry[T]):
    """Stages or draws: no parameter occurs twice among all of them, for each is a flat field too."""

    def _check(self, item: Any) -> None:
        super()._check(item)
        where = f"{self.kind} '{item.name}'"
        if self is STAGES and not isinstance(getattr(item, "order", None), (int, float)):
            raise ValueError(f"{where}: order must be a number")
        owners = {field: one for registry in (STAGES, DRAWS) for one in registry._items.values() for field in _of(one)}
        for field in _of(item):
            if field in RESERVED:
                raise ValueError(f"{where}: no parameter can be called '{field}'")
            if field in owners:
                raise ValueError(f"{where}: the parameter '{field}' is taken by {_origin(owners[field])}")


def _of(item: Any) -> tuple[str, ...]:
    """Every field of an item."""
    return (*(param.name for param in item.params), *getattr(item, "structured", ()))


def _origin(item: Any) -> str:
    return f"{type(item).__module__}.{type(item).__qualname__}"


def _package(entry: EntryPoint) -> str:
    owner = f"package '{entry.dist.name}'" if entry.dist is not None else "an unknown package"
    return f"'{entry.name}' ({entry.value}) of {owner}"


STAGES: SamplerRegistry[Stage] = SamplerRegistry(
    "sampler stage", "drafthouse.samplers", ("check", "new_state", "shape", "parse", "is_neutral")
)
DRAWS: SamplerRegistry[Draw] = SamplerRegistry("draw", "drafthouse.draws", ("check", "new_state", "pick"))
