"""Log-probabilities of drawn and of prompt tokens, as numbers ready to leave the engine.

The value of a token and the same token's value in its top list are one float32, so clients may compare them
for equality. A top list has exactly k entries, ties go to the lower id; where fewer than k tokens can occur, it
ends with impossible ones (-inf).
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.request import TokenScore

_CHUNK = 2**24  # elements of a chunk of rows; a whole prompt over a large vocabulary would take gigabytes
Top = tuple[tuple[int, float], ...]


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """ln softmax(logits)[token] per row. logits: [R, V] fp32; tokens: [R] -> [R] fp32."""
    chosen = logits.gather(1, tokens.unsqueeze(1)).squeeze(1)
    return chosen - logits.logsumexp(1)


def token_scores(logits: Tensor, tokens: Tensor, top: int, extra: tuple[int, ...] = ()) -> list[TokenScore]:
    """Full scores per row, computed in fp32. logits: [R, V] of any float dtype; tokens: [R] int64."""
    rows = max(1, _CHUNK // logits.shape[1])
    scores: list[TokenScore] = []
    for some, own in zip(logits.split(rows), tokens.split(rows), strict=True):
        scores += _scores(some.float(), own, top, extra)
    return scores


def _scores(logits: Tensor, tokens: Tensor, top: int, extra: tuple[int, ...]) -> list[TokenScore]:
    logprobs = logits - logits.logsumexp(1, keepdim=True)
    own = logprobs.gather(1, tokens.unsqueeze(1))
    ranks = ((logprobs > own).sum(1) + 1).tolist()
    tops = _top(logprobs, top) if top else [()] * len(ranks)
    extras = logprobs[:, list(extra)].tolist() if extra else [()] * len(ranks)
    return [
        TokenScore(value, rank, best, tuple(zip(extra, more, strict=True)))
        for value, rank, best, more in zip(own[:, 0].tolist(), ranks, tops, extras, strict=True)
    ]


def _top(logprobs: Tensor, k: int) -> list[Top]:
    """The k largest entries of each row, descending, ties to the lower id."""
    values, ids = logprobs.topk(min(k, logprobs.shape[1]), 1)
    # topk leaves the choice among entries tied with the last of them open: rows where it had a choice are mended
    last = values[:, -1:]
    tied = logprobs == last
    chosen_among = tied.sum(1) > (values == last).sum(1)
    if bool(chosen_among.any()):
        ids[chosen_among] = _lowest_of_tied(values[chosen_among], ids[chosen_among], tied[chosen_among])
    ids, by_id = ids.sort(1)
    values, by_value = values.gather(1, by_id).sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, by_value)
    return [tuple(zip(row, numbers, strict=True)) for row, numbers in zip(ids.tolist(), values.tolist(), strict=True)]


def _lowest_of_tied(values: Tensor, ids: Tensor, tied: Tensor) -> Tensor:
    """ids [R, k] with those tied with the last value replaced by the lowest such ids. tied: [R, V] bool."""
    count = tied.shape[1]
    every = torch.where(tied, torch.arange(count, device=tied.device), count)
    lowest = every.topk(ids.shape[1], 1, largest=False, sorted=True).values
    last = values == values[:, -1:]
    place = (last.cumsum(1) - 1).clamp(min=0)  # values descend, so the tied ones are the last columns
    return torch.where(last, lowest.gather(1, place), ids)
