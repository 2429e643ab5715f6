"""What the model said after the branches a program asked about: one row of logits each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from samplers.programs.branch import Token
from samplers.rows import highest

Scorer = Callable[[Tensor, Tensor, Tensor], list[list[Any]]]  # (raw, shaped, ids [R, K]) -> what to list about each


class Rows:
    """R rows in the order of the branches. A row that the request's masks leave empty has no candidates."""

    def __init__(self, raw: Tensor, shaped: Tensor, drawn: Sequence[int], scorer: Scorer | None = None) -> None:
        """raw, shaped: [R, V] fp32, before and after the stages; drawn: what the chain's draw picked, -1: nothing."""
        self.raw = raw
        self.shaped = shaped
        self.drawn = drawn
        self._scorer = scorer
        self._totals: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.raw)

    def best(self, k: int, allowed: Tensor | None = None) -> list[list[Token]]:
        """The k tokens that the stages leave the most probable, descending, equals by id; fewer where there are fewer.

        allowed: [R, V] bool, tokens to choose among; ln q stays that of the whole row.
        """
        logqs, ids = self.top(k, allowed)
        counts = (logqs > -torch.inf).sum(1).tolist()
        return [row[:count] for row, count in zip(self.tokens(ids), counts, strict=True)]

    def top(self, k: int, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(ln q fp32, ids int64) of `best`, each [R, min(k, V)]; ln q of what cannot be chosen is -inf."""
        candidates = self.shaped if allowed is None else self.shaped.masked_fill(~allowed, -torch.inf)
        values, ids = highest(candidates, min(k, candidates.shape[1]))
        return torch.where(values > -torch.inf, values - self._log_totals()[1], -torch.inf), ids

    def masses(self, allowed: Tensor) -> list[float]:
        """ln of what q gives to the allowed tokens, [R, V] bool, of each row."""
        within = self.shaped.masked_fill(~allowed, -torch.inf)
        return (within.logsumexp(1) - self.shaped.logsumexp(1)).tolist()

    def draws(self) -> list[Token | None]:
        """The token that the chain's draw picked in each row; None of an empty row."""
        ids = torch.tensor(self.drawn, device=self.raw.device).clamp(min=0).unsqueeze(1)
        return [row[0] if id_ >= 0 else None for row, id_ in zip(self.tokens(ids), self.drawn, strict=True)]

    def tokens(self, ids: Tensor) -> list[list[Token]]:
        """The tokens of these ids, [R, K] int64, with what each row says about them."""
        raw_total, shaped_total = self._log_totals()
        logprobs = (self.raw.gather(1, ids) - raw_total).tolist()
        logqs = (self.shaped.gather(1, ids) - shaped_total).tolist()
        scores = (
            [[None] * ids.shape[1]] * len(ids) if self._scorer is None else self._scorer(self.raw, self.shaped, ids)
        )
        columns = zip(ids.tolist(), logprobs, logqs, scores, strict=True)
        return [[Token(*one) for one in zip(*row, strict=True)] for row in columns]

    def _log_totals(self) -> tuple[Tensor, Tensor]:
        """ln sum exp of the raw and of the shaped rows, each [R, 1]."""
        if self._totals is None:
            self._totals = self.raw.logsumexp(1, keepdim=True), self.shaped.logsumexp(1, keepdim=True)
        return self._totals
