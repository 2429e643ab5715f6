"""A served model as a scorer: how probable it finds a response, as another tokenizer writes it (arXiv 2505.21941).

Scores are minus bits per byte or the mean log-probability of a token (voting.md 5), so that higher is better.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.runners.base import TooLarge
from server.offload import offload
from server.prompt_scores import known
from server.prompts import MESSAGE_SIZE
from server.state import ServedModel
from server.text.codec import TemplateError
from server.together import all_of
from server.votes.problem import Problem
from server.votes.scoring.scored import TOO_LONG, ScorerFailed, Scores
from voting.rules.ppl import bits_per_byte


@dataclass(frozen=True)
class Reading:
    """A response as the model reads it."""

    ids: tuple[int, ...]  # with what it has read before
    first: int  # index of the first id that counts
    n_bytes: int  # of the text from there on

    @property
    def counts(self) -> bool:
        return self.first < len(self.ids) and self.n_bytes > 0


@dataclass(frozen=True)
class ModelScorer:
    """Has each response read once, as a prompt behind which nothing is generated."""

    model: ServedModel
    condition: str  # none: the response alone; prompt: as an answer to the problem
    unit: str  # byte, token
    in_flight: int  # responses at a time

    async def scores(self, problem: Problem, texts: Sequence[str]) -> Scores:
        readings = await self._read(await self._context(problem), texts)
        gate = asyncio.Semaphore(self.in_flight)
        identity = f"score-{secrets.token_hex(14)}"

        async def score(number: int) -> float | None:
            reading = readings[number]
            if reading is None:
                return None
            if not reading.counts:
                return math.nan
            name = f"{identity}-{number}"
            try:
                async with gate:  # the salt is a secret: what is read here makes nobody else's prompt faster
                    found = await known(self.model.runner, name, reading.ids, reading.first, cache_salt=identity)
            except TooLarge:
                return None
            return self._score(found.logprobs, reading.n_bytes)

        alone = 1 if self.condition == "prompt" else 0  # the others find the prompt in the prefix cache
        found = [await score(number) for number in range(alone)]
        found += await all_of(score(number) for number in range(alone, len(texts)))
        return Scores(
            tuple(math.nan if score is None else score for score in found),
            (TOO_LONG,) if None in found else (),
            sum(len(one.ids) for one in readings if one is not None and one.counts),
        )

    async def _context(self, problem: Problem) -> list[int]:
        """What comes before every response. Empty: nothing does, not even a BOS."""
        codec = self.model.tokenizer
        ids: list[int] = []
        if self.condition == "prompt" and problem.messages is not None and codec.chat_template is not None:
            ids = (await codec.encode(await self._rendered(problem.messages, problem.continued), False)).ids
        elif self.condition == "prompt":
            ids = (await codec.encode(problem.text, True)).ids
        return ids or ([] if codec.bos_token_id is None else [codec.bos_token_id])

    async def _rendered(self, messages: Sequence[Mapping[str, Any]], continued: bool) -> str:
        try:
            return await offload(
                MESSAGE_SIZE * len(messages),
                self.model.tokenizer.render_chat,
                messages,
                add_generation_prompt=not continued,
                continue_final_message=continued,
                options={},
            )
        except TemplateError as error:
            raise ScorerFailed(str(error)) from error

    async def _read(self, context: Sequence[int], texts: Sequence[str]) -> list[Reading | None]:
        """None: it does not fit into the model's context."""
        codec, longest = self.model.tokenizer, self.model.runner.max_model_len
        short = [text for text in texts if not codec.surely_longer_than(text, longest)]
        # a space in front of the response is the one that tokenizers like SentencePiece put there
        encoded = await codec.encode_all([text[codec.leading_spaces(text) :] for text in short], False)
        readings = {}
        for text, one in zip(short, encoded, strict=True):
            ids = (*context, *one.ids)
            if len(ids) <= longest:
                left_out = 0 if context else self._bytes_of_first(text, ids)
                readings[text] = Reading(ids, max(1, len(context)), len(text.encode()) - left_out)
        return [readings.get(text) for text in texts]

    def _bytes_of_first(self, text: str, ids: Sequence[int]) -> int:
        """How much of a text its first token is."""
        codec = self.model.tokenizer
        piece = codec.token_bytes(ids[0]) if ids else b""
        put_in_front = codec.leading_spaces(piece.decode("utf-8", "replace")) - codec.leading_spaces(text)
        return len(piece) - put_in_front

    def _score(self, logprobs: Sequence[float], n_bytes: int) -> float:
        total = math.fsum(logprobs)
        return total / len(logprobs) if self.unit == "token" else -bits_per_byte(total, n_bytes)
