"""Base classes of stages, draws and states: everything that the simplest of each does not have to say."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from samplers.contract import Param, SamplerError, Shape, State
from samplers.model_facts import ModelFacts


class BaseStage:
    """A stateless stage with scalar parameters that also stays out of greedy decoding."""

    name: ClassVar[str]
    order: ClassVar[float]
    params: ClassVar[tuple[Param, ...]] = ()
    structured: ClassVar[tuple[str, ...]] = ()
    structured_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    in_greedy: ClassVar[bool] = False
    excludes: ClassVar[frozenset[str]] = frozenset()
    resumable: ClassVar[bool] = True

    def parse(self, field: str, value: Any, path: str, vocab: int) -> Any:
        raise SamplerError(f"'{path}' is not a field of {self.name}", path)

    def check(self, values: Mapping[str, Any], model: ModelFacts) -> None:
        """Everything in range is fine."""

    def is_neutral(self, values: Mapping[str, Any]) -> bool:
        return all(values[param.name] == param.neutral for param in self.params) and not any(
            values.get(field) for field in self.structured
        )

    def new_state(self, shape: Shape) -> State | None:
        return None


class BaseDraw:
    """A stateless draw without parameters."""

    name: ClassVar[str]
    params: ClassVar[tuple[Param, ...]] = ()
    shared_noise: ClassVar[bool] = False
    sees_raw: ClassVar[bool] = False
    excludes: ClassVar[frozenset[str]] = frozenset()
    resumable: ClassVar[bool] = True

    def check(self, values: Mapping[str, Any], model: ModelFacts) -> None:
        """Everything in range is fine."""

    def new_state(self, shape: Shape) -> State | None:
        return None


class FixedState:
    """Base of states that are written at admission and do not depend on the tokens that follow. They are not told of
    tokens unless they override `accept` or `snapshot`."""

    def accept(self, slots: Tensor, tokens: Tensor) -> None:
        """Nothing depends on the tokens."""

    def snapshot(self, slot: int) -> Any:
        return None

    def restore(self, slot: int, snapshot: Any) -> None:
        """Nothing to undo."""

    def free(self, slot: int) -> None:
        """The next `admit` overwrites the slot."""


def token_ids(value: Any, path: str, vocab: int) -> tuple[int, ...]:
    """A list of token ids inside the vocabulary. Raises SamplerError."""
    if not isinstance(value, (list, tuple)):
        raise SamplerError(f"'{path}' must be a list of token ids", path)
    for i, item in enumerate(value):
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < vocab:
            raise SamplerError(f"'{path}[{i}]' must be a token id in [0, {vocab})", f"{path}[{i}]")
    return tuple(value)
