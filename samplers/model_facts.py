"""What samplers may know about a model beyond the rows it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from samplers.programs.ngrams import NgramTables

T = TypeVar("T")


@dataclass(frozen=True)
class ModelFacts:
    """None: not known here. A sampler that needs it refuses the request (`check` of stages and draws)."""

    pieces: Sequence[bytes] | None = None  # what each token id stands for; parts of characters are not valid UTF-8
    special_ids: frozenset[int] = frozenset()  # control tokens
    head: Tensor | None = None  # [V, H] with logits = head @ hidden and nothing after it
    ngrams: NgramTables | None = None  # of texts like those to be generated
    _shared: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def shared(self, make: Callable[[ModelFacts], T]) -> T:
        """What `make` builds of these facts: once, however many requests ask, and kept as long as the facts are."""
        if make not in self._shared:
            self._shared[make] = make(self)
        made: T = self._shared[make]
        return made


NO_FACTS = ModelFacts()
