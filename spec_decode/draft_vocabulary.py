"""A part of the vocabulary that a draft model chooses from, and the way back: whatever is outside of it has q = 0 and
reaches the output through the verifier's own token, so the law stays exact for every part (spec_decode.md 6.2)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class DraftVocabulary:
    """S of V tokens. A draft row has S entries, in the order of the ids, so that ties fall as in a whole row."""

    def __init__(self, ids: NDArray[np.int64], vocabulary: int) -> None:
        """ids: [S], rising, below `vocabulary` (V)."""
        self.ids = ids
        self.vocabulary = vocabulary
        self._targets = torch.from_numpy(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def head(self, weights: Tensor) -> Tensor:
        """[S, H] of a head's rows [V, H]: the part that draft rows need."""
        return weights[self._on(weights)]

    def to_target(self, chosen: Tensor) -> Tensor:
        """Token ids of columns of draft rows; any shape, int64."""
        return self._on(chosen)[chosen]

    def spread(self, rows: Tensor, other: float = 0.0) -> Tensor:
        """Draft rows [R, S] as rows [R, V] with one value at all other tokens: 0 is right for probabilities."""
        whole = rows.new_full((len(rows), self.vocabulary), other)
        whole[:, self._on(rows)] = rows
        return whole

    def with_tokens(self, tokens: Collection[int]) -> DraftVocabulary:
        """With more ids, such as those of a prompt."""
        return DraftVocabulary(np.union1d(self.ids, np.fromiter(tokens, np.int64)), self.vocabulary)

    def _on(self, other: Tensor) -> Tensor:
        """The ids, [S] int64, where the other tensor is."""
        if self._targets.device != other.device:
            self._targets = self._targets.to(other.device)
        return self._targets
