"""Log-probabilities of drawn and of prompt tokens, as numbers ready to leave the engine.

The value of a token and the same token's value in its top list are one float32, so clients may compare them
for equality. Ties in the top list go to the lower id.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.request import TokenScore


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """ln softmax(logits)[token] per row. logits: [R, V] fp32; tokens: [R] -> [R] fp32."""
    chosen = logits.gather(1, tokens.unsqueeze(1)).squeeze(1)
    return chosen - logits.logsumexp(1)


def token_scores(logits: Tensor, tokens: Tensor, top: int, extra: tuple[int, ...] = ()) -> list[TokenScore]:
    """Full scores per row. logits: [R, V] fp32; tokens: [R] int64."""
    logprobs = logits - logits.logsumexp(1, keepdim=True)
    own = logprobs.gather(1, tokens.unsqueeze(1))
    ranks = ((logprobs > own).sum(1) + 1).tolist()
    tops = _top(logprobs, top) if top else [()] * len(ranks)
    extras = logprobs[:, list(extra)].tolist() if extra else [()] * len(ranks)
    return [
        TokenScore(value, rank, best, tuple(zip(extra, more, strict=True)))
        for value, rank, best, more in zip(own[:, 0].tolist(), ranks, tops, extras, strict=True)
    ]


def _top(logprobs: Tensor, k: int) -> list[tuple[tuple[int, float], ...]]:
    k = min(k, logprobs.shape[1])
    threshold = logprobs.topk(k, 1).values[:, -1:]
    result = []
    # topk leaves the order and the choice among ties open: take all entries at or above the k-th value and sort
    for row, bound in zip(logprobs, threshold, strict=True):
        ids = torch.nonzero(row >= bound).flatten()
        pairs = sorted(zip(ids.tolist(), row[ids].tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
        result.append(tuple(pairs[:k]))
    return result
