"""The contract of decoding programs: one request's decoding when it is more than one next token at a time.

A program (priority search, beam, superposed decoding, tree search) owns branches of a shared prefix, asks the
engine for rows, and ends with ranked choices. Pages are shared between branches and copied on write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import Tensor

from samplers.contract import Param
from samplers.registry import Registry


class Branch(Protocol):
    """One continuation of the prompt. Handles are owned by the program until released."""

    @property
    def length(self) -> int:
        """Cached tokens, prompt included."""
        ...

    def fork(self) -> Branch:
        """A second branch with the same tokens; costs no copy until one of them is written to."""
        ...

    def truncate(self, length: int) -> None:
        """Forget everything behind the first `length` tokens."""
        ...

    def release(self) -> None:
        """Give the pages back; harmless when repeated."""
        ...


@dataclass(frozen=True)
class Ask:
    """Tokens or embeddings a program wants computed at the end of a branch."""

    branch: Branch
    tokens: Sequence[int] = ()
    embeddings: Tensor | None = None  # [n, H] instead of tokens; needs the capability `input_embeddings`
    hidden_states: bool = False  # wants them beside the logits; needs the capability `hidden_states`


@dataclass(frozen=True)
class Answer:
    """What the model said after an ask's last token."""

    ask: Ask
    logits: Tensor  # [V] fp32, raw
    hidden: Tensor | None = None  # [H], where it was asked for


@dataclass(frozen=True)
class RankedChoice:
    """One finished text of a program; choices are returned best first."""

    tokens: tuple[int, ...]
    logprob: float  # raw, of all its tokens
    finish_reason: str  # 'stop' or 'length'
    log_weight: float | None = None  # of weighted methods


@dataclass
class Progress:
    """What a program wants after a step: rows, or nothing more because `choices` are final."""

    asks: list[Ask] = field(default_factory=list)
    choices: list[RankedChoice] | None = None


class Program(Protocol):
    """One instance decodes one request; all calls come from the engine thread."""

    name: ClassVar[str]
    params: ClassVar[tuple[Param, ...]]
    needs: ClassVar[frozenset[str]]  # capabilities of the runner; a lacking one is a 400 before anything starts

    def start(self, root: Branch, logits: Tensor) -> Progress:
        """`root` holds the whole prompt; logits [V] fp32 follow its last token."""
        ...

    def step(self, answers: Sequence[Answer]) -> Progress:
        """Answers to the last asks, in their order."""
        ...


PROGRAMS: Registry[type[Program]] = Registry("program", "drafthouse.programs")
