"""Log-probabilities of drawn and of prompt tokens, as numbers ready to leave the engine.

The value of a token and the same token's value in its top list are one float32, so clients may compare them
for equality. A top list has exactly k entries, ties go to the lower id; where fewer than k tokens can occur, it
ends with impossible ones (-inf).
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.request import TokenScore
from samplers.rows import highest

_CHUNK = 2**24  # elements of a chunk of rows; a whole prompt over a large vocabulary would take gigabytes
Top = tuple[tuple[int, float], ...]


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """ln softmax(logits)[token] per row. logits: [R, V] fp32; tokens: [R] -> [R] fp32."""
    chosen = logits.gather(1, tokens.unsqueeze(1)).squeeze(1)
    return chosen - logits.logsumexp(1)


def token_scores(logits: Tensor, tokens: Tensor, top: int, extra: tuple[int, ...] = ()) -> list[TokenScore]:
    """Full scores per row, computed in fp32. logits: [R, V] of any float dtype; tokens: [R] int64."""
    return [row[0] for row in candidate_scores(logits, tokens.unsqueeze(1), top, extra)]


def candidate_scores(logits: Tensor, ids: Tensor, top: int, extra: tuple[int, ...] = ()) -> list[list[TokenScore]]:
    """Scores of several tokens of each row. logits: [R, V] of any float dtype; ids: [R, K] int64."""
    rows = max(1, _CHUNK // logits.shape[1])
    scores: list[list[TokenScore]] = []
    for some, own in zip(logits.split(rows), ids.split(rows), strict=True):
        scores += _scores(some.float(), own, top, extra)
    return scores


def _scores(logits: Tensor, ids: Tensor, top: int, extra: tuple[int, ...]) -> list[list[TokenScore]]:
    logprobs = logits - logits.logsumexp(1, keepdim=True)
    own = logprobs.gather(1, ids)
    ranks = torch.stack([(logprobs > one.unsqueeze(1)).sum(1) + 1 for one in own.unbind(1)], 1).tolist()
    tops = _top(logprobs, top) if top else [()] * len(ranks)
    extras = logprobs[:, list(extra)].tolist() if extra else [()] * len(ranks)
    return [
        [TokenScore(value, rank, best, tuple(zip(extra, more, strict=True))) for value, rank in zip(*both, strict=True)]
        for *both, best, more in zip(own.tolist(), ranks, tops, extras, strict=True)
    ]


def _top(logprobs: Tensor, k: int) -> list[Top]:
    values, ids = highest(logprobs, min(k, logprobs.shape[1]))
    return [tuple(zip(row, numbers, strict=True)) for row, numbers in zip(ids.tolist(), values.tolist(), strict=True)]
