"""Log-probabilities of drawn and of prompt tokens, as numbers ready to leave the engine.

The value of a token and the same token's value in its top list are one float32, so clients may compare them
for equality. A top list has exactly k entries, ties go to the lower id; where fewer than k tokens can occur, it
ends with impossible ones (-inf).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.request import DecodeRequest, TokenScore
from samplers.rows import highest

_CHUNK = 2**24  # elements of a chunk of rows; a whole prompt over a large vocabulary would take gigabytes
Top = tuple[tuple[int, float], ...]


class ScoreQuestion(NamedTuple):
    """What a request wants to know of each of its tokens."""

    processed: bool  # by the row after the samplers
    top: int  # of the most probable ones as well
    extra: tuple[int, ...]  # of these ids as well

    @classmethod
    def of(cls, request: DecodeRequest) -> ScoreQuestion | None:
        """None: nothing."""
        if request.logprobs is None:
            return None
        return cls(request.processed_logprobs, request.logprobs, request.logprob_token_ids)


def asked_scores(
    questions: Sequence[ScoreQuestion | None], raw: Tensor, processed: Tensor, tokens: Tensor
) -> list[TokenScore | None]:
    """The answers about the token of each row: one call per distinct question, not per row. None: there is no question.

    raw, processed: [R, V]; tokens: [R].
    """
    asked: dict[ScoreQuestion, list[int]] = {}
    for row, question in enumerate(questions):
        if question is not None:
            asked.setdefault(question, []).append(row)
    found: list[TokenScore | None] = [None] * len(questions)
    for question, members in asked.items():
        source, own = processed if question.processed else raw, tokens
        if len(members) < len(questions):
            source, own = source[members], own[members]
        for row, score in zip(members, token_scores(source, own, question.top, question.extra), strict=True):
            found[row] = score
    return found


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """ln softmax(logits)[token] per row. logits: [R, V] fp32; tokens: [R] -> [R] fp32."""
    return logits.log_softmax(1).gather(1, tokens.unsqueeze(1)).squeeze(1)


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
    logprobs = logits.log_softmax(1)
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
