"""Inputs that are several tokens at once: their embeddings, added up by weight, under the id of a spare row.

The embedding table gets rows behind the vocabulary, written before each step that needs them. So a mixture is an input
id like any other, for the eager model, its replayed form and CUDA graphs alike, and what a family does to embeddings
behind the table (Gemma scales them) happens to mixtures too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from samplers.programs.branch import Mixture


class MixedEmbeddings:
    """The spare rows of one model's embedding table."""

    def __init__(self, table: Tensor, first: int) -> None:
        self._table = table  # [first + spare, H]
        self._first = first

    def place(self, mixtures: Sequence[Mixture]) -> list[int]:
        """Input ids of these mixtures until the next call."""
        for row, mixture in enumerate(mixtures, self._first):
            weights = torch.tensor(mixture.weights, dtype=torch.float32, device=self._table.device)
            ids = torch.tensor(mixture.ids, device=self._table.device)
            self._table[row] = (weights @ self._table[ids].float()).to(self._table.dtype)
        return list(range(self._first, self._first + len(mixtures)))


def add_spare_rows(model: nn.Module, spare: int) -> MixedEmbeddings | None:
    """Enlarge the model's embedding table by `spare` rows, of which a head that is tied to it sees nothing.

    None, and nothing changes, for models that look their input ids up elsewhere too (embeddings per layer).
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding):
        return None
    count = embedding.num_embeddings
    tables = [one for one in model.modules() if isinstance(one, nn.Embedding) and one.num_embeddings >= count]
    if tables != [embedding]:
        return None
    old = embedding.weight.detach()
    table = torch.cat([old, old[:1].expand(spare, -1)])
    tied = head is not None and head.weight.data_ptr() == old.data_ptr()
    embedding.weight = nn.Parameter(table, requires_grad=False)
    if tied:
        head.weight = nn.Parameter(table[:count], requires_grad=False)
    return MixedEmbeddings(table, count)
