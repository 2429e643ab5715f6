"""What the simplest stopping rule does not have to say."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from samplers.contract import Param
from voting.stopping.contract import Evidence, Label


class BaseStoppingRule:
    """Counts samples, whatever they depend on."""

    name: ClassVar[str]
    params: ClassVar[tuple[Param, ...]] = ()
    default_samples: ClassVar[int | None] = 40
    needs_iid: ClassVar[bool] = False

    def needs(self, values: Mapping[str, Any]) -> frozenset[str]:
        return frozenset()

    def start(self, values: Mapping[str, Any]) -> Evidence:
        raise NotImplementedError


class BaseEvidence:
    """Has nothing to say, and takes the answer from all samples."""

    enough = False
    value: float | None = None

    def add(self, label: Label, weight: float) -> None:
        """Samples change nothing."""

    def basis(self, seen: int) -> range:
        return range(seen)

    def details(self) -> Mapping[str, Any]:
        return MappingProxyType({})
