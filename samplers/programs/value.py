"""What a tree search thinks of a text, and of a place to continue from. Third parties register their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Protocol

from samplers.programs.branch import Token
from samplers.programs.contract import Task
from samplers.registry import Registry


class ValueFunction(Protocol):
    """Stateless; called in the engine's thread. Larger is better; every value is finite."""

    name: ClassVar[str]
    selects: ClassVar[frozenset[str]]  # the ways of selecting that it has a meaning for

    def of_text(self, task: Task, tokens: Sequence[Token]) -> float:
        """The value of a finished text. `task.prompt_ids` and `task.limits.pieces` say what it says."""
        ...

    def of_node(self, backed_up: float, untried: Token) -> float:
        """The value of a node for the selection by confidence: from the value that the roll-outs through it have
        given it (NaN: none has been finished) and the best token that is yet to be tried there."""
        ...


VALUE_FUNCTIONS: Registry[ValueFunction] = Registry("value function", "drafthouse.value_functions")


@VALUE_FUNCTIONS.register
class Confidence:
    """Mean ln p of the tokens, by the model's own rows."""

    name = "confidence"
    selects = frozenset({"confidence", "puct"})

    def of_text(self, task: Task, tokens: Sequence[Token]) -> float:
        return math.fsum(token.logprob for token in tokens) / len(tokens)

    def of_node(self, backed_up: float, untried: Token) -> float:
        return backed_up


@VALUE_FUNCTIONS.register
class BestChild(Confidence):
    """Texts as above; nodes by the probability of what is tried next. At tau 0 the search is priority sampling with
    local keys."""

    name = "best_child"
    selects = frozenset({"confidence"})

    def of_node(self, backed_up: float, untried: Token) -> float:
        return math.exp(untried.logq)


def value_of(function: ValueFunction, task: Task, tokens: Sequence[Token]) -> float:
    """The value of a finished text. Raises ValueError for a function that gives no finite number."""
    value = function.of_text(task, tokens)
    if not math.isfinite(value):
        raise ValueError(f"value function '{function.name}' gave {value}")
    return value
