"""How samples are drawn: everything that decides which samples a file has, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """JSON values; None: the server's own, or none."""

    model: str
    endpoint: str  # 'chat' or 'completions'
    samples: int  # per problem
    temperature: float | None
    top_p: float | None
    sampler: Any  # Drafthouse's field
    max_tokens: int | None
    seed: int
    top_logprobs: int  # alternatives per token behind `topk_entropy` and `confs`; 0: not recorded
    extract: Any
    end_of_reasoning: str | None
    instruction: str  # behind every prompt

    @property
    def fixed(self) -> Mapping[str, Any]:
        """Fields of every request."""
        asked = {"temperature": self.temperature, "top_p": self.top_p, "sampler": self.sampler}
        return {"model": self.model, **{name: value for name, value in asked.items() if value is not None}}

    def json(self) -> dict[str, Any]:
        return asdict(self)
