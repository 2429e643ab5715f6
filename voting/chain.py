"""Attempts in a chain: each sees what was tried before it and is asked to verify and refine (arXiv 2511.02309).

Knows nothing about tokens: whoever generates says when the context is full.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

INSTRUCTION = (
    "Check the solution above step by step. Correct what is wrong and improve what is unclear, then give the complete "
    "solution again, ending with the final answer in the form that was asked for."
)


class Turn(NamedTuple):
    role: str  # 'assistant' or 'user'
    content: str


@dataclass
class Chain:
    """One chain of `length` attempts at a prompt."""

    length: int
    history: str = "last"  # which attempts the next one sees: 'last' or 'all'
    attempts: list[str] = field(default_factory=list)
    truncated: bool = False  # the context was full before the last attempt

    @property
    def done(self) -> bool:
        return self.truncated or len(self.attempts) >= self.length

    def turns(self) -> list[Turn]:
        """What follows the prompt when the next attempt is generated; nothing for the first."""
        seen = self.attempts if self.history == "all" else self.attempts[-1:]
        return [turn for text in seen for turn in (Turn("assistant", text), Turn("user", INSTRUCTION))]

    def prompt(self, prompt: str) -> str:
        """The same for a model without chat template."""
        return "\n\n".join((prompt, *(turn.content for turn in self.turns()))) + ("\n\n" if self.attempts else "")

    def add(self, attempt: str) -> None:
        """The text of the attempt that was due. Raises ValueError where none was."""
        if self.done:
            raise ValueError("the chain is complete")
        self.attempts.append(attempt)

    def stop(self) -> None:
        """The next attempt does not fit into the context."""
        self.truncated = not self.done
