"""What samplers may know about a model beyond the rows it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ModelFacts:
    """None: not known here. A sampler that needs it refuses the request (`check` of stages and draws)."""

    pieces: Sequence[bytes] | None = None  # what each token id stands for; parts of characters are not valid UTF-8
    special_ids: frozenset[int] = frozenset()  # control tokens
    head: Tensor | None = None  # [V, H] with logits = head @ hidden and nothing after it


NO_FACTS = ModelFacts()
