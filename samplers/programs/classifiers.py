"""Classifiers of outputs, for those who register one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from samplers.programs.text import Text
from samplers.registry import Registry


class Classifier(Protocol):
    """Stateless; called in the engine's thread, which everybody waits for."""

    name: ClassVar[str]

    def probabilities(self, prompt_ids: Sequence[int], texts: Sequence[Text]) -> Sequence[float]:
        """P(the finished output will be what the classifier looks for | this much of it) of each text; of texts that
        have ended, P(it is). None of them NaN."""
        ...


CLASSIFIERS: Registry[Classifier] = Registry("classifier", "drafthouse.classifiers")
