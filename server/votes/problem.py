"""A prompt as text: what judges and scorers are shown, and what the next attempt of a chain follows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.prompts import PromptInput
from voting.chain import Chain


@dataclass(frozen=True)
class Problem:
    """One prompt of a request."""

    text: str  # of a conversation, what its messages say
    messages: Sequence[Mapping[str, Any]] | None = None  # None: it is no conversation
    continued: bool = False  # samples go on with the last message instead of beginning one
    # the prompt of the next attempt; raises a 400 where it does not fit into the context
    follow: Callable[[Chain], Awaitable[PromptInput]] | None = field(default=None, repr=False, compare=False)
