"""A vocabulary under which a sampler is tried: the same tokens may have other ids, or be joined by masked ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

import torch
from torch import Tensor

from samplers.model_facts import ModelFacts

_PIECES = (" a", "the", "\n", ' "', ":", "x", " = ", "1", "*", "ing", ")", "    ", "if", " return", "é", "A")
_WIDTH = 4  # of the model's head


@dataclass(frozen=True, eq=False)
class World:
    """`ids[i]` is the id of what every check calls token i; `vocab` may be larger than the number of tokens."""

    vocab: int
    ids: Tensor = field(repr=False)  # [tokens] int64

    @classmethod
    @cache
    def plain(cls, tokens: int, more: int = 0) -> World:
        return cls(tokens + more, torch.arange(tokens))

    @classmethod
    def shuffled(cls, tokens: int, generator: torch.Generator) -> World:
        return cls(tokens, torch.randperm(tokens, generator=generator))

    def rows(self, rows: Tensor) -> Tensor:
        """Rows of tokens as rows of ids; what is no token is masked. [R, tokens] -> [R, vocab]."""
        renamed = torch.full((len(rows), self.vocab), -torch.inf)
        renamed[:, self.ids] = rows
        return renamed

    def tokens(self, tokens: Sequence[int]) -> list[int]:
        return self.ids[list(tokens)].tolist() if len(tokens) else []

    def back(self, rows: Tensor) -> Tensor:
        """Rows of ids as rows of tokens. [R, vocab] -> [R, tokens]."""
        return rows[:, self.ids]


@lru_cache(4)
def plain_facts(world: World) -> ModelFacts:
    """A made-up model: repeating pieces of text, token 0 special, a random head."""
    pieces = [b"\xff"] * world.vocab
    count = len(world.ids)
    for token, at in enumerate(world.ids.tolist()):
        word = _PIECES[token % len(_PIECES)]
        pieces[at] = word.encode() if token < len(_PIECES) else f"{word}{token}".encode()
    head = torch.zeros(world.vocab, _WIDTH)
    head[world.ids] = torch.randn(count, _WIDTH, generator=torch.Generator().manual_seed(count))
    return ModelFacts(pieces, frozenset(world.ids[:1].tolist()), head)
