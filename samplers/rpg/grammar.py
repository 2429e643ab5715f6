"""The contract of a language for RPG, and the registry of languages.

A grammar reads bytes and says which statement-level symbols they are. It is a stateless object; its states are
values that are never changed, so that remembering, undoing and forking one costs a reference.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from importlib.metadata import entry_points
from typing import Any, ClassVar, NamedTuple, Protocol

from samplers.contract import SamplerError

log = logging.getLogger(__name__)
Symbol = Hashable  # what a token does at statement level: (parser state, stack top) in the paper, anything in a grammar
BREAK: Symbol = type("Break", (), {"__repr__": lambda self: "BREAK"})()  # an error: nothing before it repeats behind it


class Fed(NamedTuple):
    state: Any
    symbols: Sequence[Symbol]


class Grammar(Protocol):
    """One language. However a text is cut into pieces, its symbols are the same."""

    name: ClassVar[str]

    def start(self) -> Any:
        """The state before the first byte."""
        ...

    def feed(self, state: Any, text: bytes) -> Fed:
        """The state behind `text`, and the symbols that it settles; any bytes are allowed. `state` is left alone.

        What could still become something else, such as a word at the end, is settled by later bytes. `BREAK` among
        the symbols forgets the text before it.
        """
        ...

    def close(self, state: Any) -> Sequence[Symbol]:
        """The further symbols if what is unsettled ended here."""
        ...


class Grammars:
    """Languages by name; third parties register through the entry-point group `drafthouse.grammars`."""

    group = "drafthouse.grammars"

    def __init__(self) -> None:
        self._items: dict[str, Grammar] = {}
        self._loaded = False

    def register(self, item: Any) -> Any:
        """Class decorator (or call) that adds `item()` under its `name` and returns the class. Raises ValueError."""
        instance = item() if isinstance(item, type) else item
        name = getattr(instance, "name", None)
        if not isinstance(name, str) or not name:
            raise ValueError(f"{item!r} has no name")
        missing = [method for method in ("start", "feed", "close") if not callable(getattr(instance, method, None))]
        if missing:
            raise ValueError(f"grammar '{name}' lacks {', '.join(missing)}")
        if name in self._items:
            raise ValueError(f"grammar '{name}' is registered twice")
        self._items[name] = instance
        return item

    def get(self, name: Any, path: str) -> Grammar:
        """Raises SamplerError listing the known names."""
        self._load()
        if not isinstance(name, str) or name not in self._items:
            shown = f"'{name}'" if isinstance(name, str) else "that is not a string"
            raise SamplerError(f"'{path}': unknown language {shown}; known: {', '.join(sorted(self._items))}", path)
        return self._items[name]

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for entry in entry_points(group=self.group):
            try:
                loaded = entry.load()
                if not any(one is loaded or type(one) is loaded for one in self._items.values()):  # decorated, too
                    self.register(loaded)
            except Exception as error:  # whatever a stranger's module does, the server starts
                log.warning("grammar '%s' is not available: %s: %s", entry.name, type(error).__name__, error)


GRAMMARS = Grammars()
