"""Log-probabilities in the three shapes clients know: chat, completions, and prompt log-probabilities.

Values are finite: minus infinity is written -9999. Knows tokens and scores, not requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.request import TokenScore
from server.choice import Entry
from server.text.codec import TextCodec

FLOOR = -9999.0


def finite(logprob: float) -> float:
    return logprob if logprob > FLOOR else FLOOR  # NaN compares false as well


@dataclass(frozen=True)
class TokenNames:
    """Writes tokens as text or, where the client asked for it, as ids."""

    codec: TextCodec
    as_ids: bool = False

    def __call__(self, token: int) -> str:
        return f"token_id:{token}" if self.as_ids else self.codec.token_text(token)


def chat_content(entries: Iterable[Entry], names: TokenNames, k: int) -> list[dict[str, Any]]:
    """`logprobs.content`: one item per token that contributes to the text."""

    def item(token: int, logprob: float) -> dict[str, Any]:
        return {"token": names(token), "logprob": finite(logprob), "bytes": list(names.codec.token_bytes(token))}

    content = []
    for entry in entries:
        if entry.visible:
            score = entry.score
            shown = {token for token, _ in score.top[:k]}
            asked = [(token, logprob) for token, logprob in score.extra if token not in shown]
            alternatives = [item(token, logprob) for token, logprob in (*score.top[:k], *asked)]
            content.append(item(entry.token, score.logprob) | {"top_logprobs": alternatives})
    return content


@dataclass
class CompletionLogprobs:
    """`logprobs` of a completion choice: four parallel arrays."""

    names: TokenNames
    k: int
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(self, token: int, score: TokenScore | None, offset: int) -> None:
        """`score` None: the first token of a prompt, which has no distribution before it."""
        self.tokens.append(self.names(token))
        self.text_offset.append(offset)
        if score is None:
            self.token_logprobs.append(None)
            self.top_logprobs.append(None)
            return
        self.token_logprobs.append(finite(score.logprob))
        top: dict[str, float] = {}
        for other, logprob in (*score.top[: self.k], (token, score.logprob), *score.extra):
            name = self.names(other)
            top[name] = max(top.get(name, FLOOR), finite(logprob))  # ids with equal text collapse to the larger value
        self.top_logprobs.append(top)

    def copy(self) -> CompletionLogprobs:
        return replace(
            self,
            tokens=self.tokens[:],
            token_logprobs=self.token_logprobs[:],
            top_logprobs=self.top_logprobs[:],
            text_offset=self.text_offset[:],
        )

    def body(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }


def prompt_logprobs(
    ids: Sequence[int], scores: Sequence[TokenScore | None], names: TokenNames, k: int
) -> list[dict[str, Any] | None]:
    """Per prompt token a map from id to logprob, rank and text; the first is null."""
    out: list[dict[str, Any] | None] = []
    for token, score in zip(ids, scores, strict=True):
        if score is None:
            out.append(None)
            continue
        ranked = [(token, score.logprob, score.rank)]
        ranked += [(other, logprob, rank) for rank, (other, logprob) in enumerate(score.top[:k], 1)]
        out.append(
            {
                str(other): {"logprob": finite(logprob), "rank": rank, "decoded_token": names(other)}
                for other, logprob, rank in reversed(ranked)
            }
        )
    return out
